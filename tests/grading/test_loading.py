import pytest


@pytest.mark.parametrize(
    "source, batch_size",
    [
        ("@dataclass\nclass Config:\n    batch_size: int = 9", 9),
        ("@dataclass\nclass Config:\n    batch_size: int", None),  # has no default
        ("class Config:\n    batch_size = 9", None),  # no dataclass
        ("def main():\n    parser.add_argument('--batch_size', default=7)\n"
         "@dataclass\nclass Config:\n    batch_size: int = 9", 7),
    ],
)  # fmt: skip
def test_settings_of_a_script_without_a_parser(settings_of, source, batch_size):
    settings = settings_of(f"from dataclasses import dataclass\n{source}\n")
    assert getattr(settings, "batch_size", None) == batch_size
