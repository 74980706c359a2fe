"""All guards, in the order of the report."""

from tests.mutations import (
    access,
    channels,
    clients,
    deploy,
    engine,
    faults,
    jobs,
    native_client,
    observe,
    page,
    process,
    steps,
    structure,
    terminal,
    tools,
    wakeups,
    web,
    wires,
)
from tests.mutations.mutation import Mutation

MUTATIONS: list[Mutation] = [
    *channels.MUTATIONS,
    *wakeups.MUTATIONS,
    *engine.MUTATIONS,
    *faults.MUTATIONS,
    *steps.MUTATIONS,
    *jobs.MUTATIONS,
    *structure.MUTATIONS,
    *web.MUTATIONS,
    *wires.MUTATIONS,
    *tools.MUTATIONS,
    *access.MUTATIONS,
    *page.MUTATIONS,
    *clients.MUTATIONS,
    *native_client.MUTATIONS,
    *terminal.MUTATIONS,
    *process.MUTATIONS,
    *observe.MUTATIONS,
    *deploy.MUTATIONS,
]
