"""What `/metrics` says, as numbers."""

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer of `/metrics`."""

    values: dict[Key, float]

    def __call__(self, name: str, **labels: str) -> float:
        """The value of a series; 0 for a counter that has counted nothing yet."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str) -> float:
        """All series of a name together."""
        return sum(value for (one, _), value in self.values.items() if one == name)

    def since(self, before: "Scrape") -> "Scrape":
        """What has been counted since another answer."""
        return Scrape({key: value - before.values.get(key, 0.0) for key, value in self.values.items()})


def parse(text: str, model_name: str = "endstop-tiny") -> Scrape:
    """Fails if a series belongs to another model."""
    values: dict[Key, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert sample.name.startswith("process_") or labels.pop("model_name") == model_name, sample
            key = sample.name, frozenset(labels.items())
            assert key not in values, f"{key} twice"
            values[key] = sample.value
    return Scrape(values)
