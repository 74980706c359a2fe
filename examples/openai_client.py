"""The openai client: a stream, a tool, an answer of a given form. `python examples/openai_client.py [URL]`."""

import json
import sys
from typing import Literal

from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam
from pydantic import BaseModel

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is the capital of Spain?"}],
    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

weather: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Madrid", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "How is the weather in Madrid?"}],
    tools=[weather],
    tool_choice="required",
    parallel_tool_calls=False,
    temperature=0,
)
for call in answer.choices[0].message.tool_calls or []:
    if call.type == "function":
        print(call.function.name, json.loads(call.function.arguments))


class City(BaseModel):
    country: Literal["France", "Spain", "Italy"]
    is_capital: bool


whole = client.chat.completions.parse(
    model=model,
    messages=[{"role": "user", "content": "Madrid"}],
    response_format=City,
    temperature=0,
)
print(whole.choices[0].message.parsed)
