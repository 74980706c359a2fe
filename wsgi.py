"""What gunicorn imports: `wsgi:app`."""

from app import create_app
from worker import process

app = create_app(process.settings)
