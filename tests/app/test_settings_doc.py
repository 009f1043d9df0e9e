from pathlib import Path

from meshgate.app.settings.setting_table import TABLE
from meshgate.app.settings.settings import Settings
from meshgate.app.settings.settings_doc import env_example, reference

COMMITTED = Path(__file__).parents[2] / ".env.example"
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_committed_example_is_up_to_date() -> None:
    hint = "make it anew: python -m meshgate config --env-example > .env.example"
    assert COMMITTED.read_text() == env_example(), hint


def test_the_example_changes_nothing_before_it_is_edited(tmp_path: Path) -> None:
    lines = env_example().splitlines()
    assert all(not line or line.startswith("#") for line in lines)
    assert Settings.load({}, environ={}, env_file=COMMITTED) == Settings.load({}, environ={}, env_file="/dev/null")


def test_the_example_names_every_setting_with_a_default_that_works(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    lines = [line[1:] for line in env_example().splitlines() if line.startswith(("#MESHGATE_", "#CONSUL_"))]
    path.write_text("\n".join(lines))
    assert [line.partition("=")[0] for line in lines] == [setting.name for setting in TABLE]
    edited, untouched = (
        Settings.load({}, environ={}, env_file=path),
        Settings.load({}, environ={}, env_file="/dev/null"),
    )
    assert [edited.shown(setting.name) for setting in TABLE] == [untouched.shown(setting.name) for setting in TABLE]


def test_the_committed_page_is_up_to_date_and_has_every_setting() -> None:
    assert PAGE.read_text() == reference(), (
        "make it anew: python -m meshgate config --reference > docs/configuration.md"
    )
    for setting in TABLE:
        assert f"| `{setting.name}` |" in reference()
