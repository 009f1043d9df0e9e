from pathlib import Path

from meshgate.app.settings.setting_table import AT_SIGHUP, TABLE
from meshgate.app.settings.settings import Settings
from meshgate.app.settings.settings_doc import env_example, reference

COMMITTED = Path(__file__).parents[2] / ".env.example"
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def loaded(path: Path) -> Settings:
    return Settings.load({"MESHGATE_ENV_FILE": str(path)}, environ={})


def test_the_committed_example_is_up_to_date() -> None:
    hint = "make it anew: python -m meshgate config --env-example > .env.example"
    assert COMMITTED.read_text() == env_example(), hint


def test_the_example_changes_nothing_before_it_is_edited(tmp_path: Path) -> None:
    lines = env_example().splitlines()
    assert all(not line or line.startswith("#") for line in lines)
    read, default = loaded(COMMITTED), Settings.load({}, environ={})
    assert {name for name, found in read.found.items() if found != default.found[name]} == {"MESHGATE_ENV_FILE"}


def test_the_example_names_every_setting_with_a_default_that_works(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    lines = [line[1:] for line in env_example().splitlines() if line.startswith(("#MESHGATE_", "#CONSUL_"))]
    path.write_text("\n".join(lines))
    names = [setting.name for setting in TABLE if setting.name != "MESHGATE_ENV_FILE"]
    assert [line.partition("=")[0] for line in lines] == names
    edited, untouched = loaded(path), Settings.load({}, environ={})
    assert [edited.shown(name) for name in names] == [untouched.shown(name) for name in names]


def test_the_committed_page_is_up_to_date_and_has_every_setting() -> None:
    assert PAGE.read_text() == reference(), (
        "make it anew: python -m meshgate config --reference > docs/configuration.md"
    )
    for setting in TABLE:
        mark = " *" if setting.name in AT_SIGHUP else ""
        assert f"| `{setting.name}`{mark} |" in reference()
