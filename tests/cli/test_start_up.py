"""What commands import before they do anything."""

from __future__ import annotations

from command_tree import every_command, imported_by


def test_help_of_every_command_imports_click_and_our_own_modules_alone() -> None:
    commands = every_command()
    imported = imported_by([(*words, "--help") for words in commands])

    assert len(imported) == len(commands) > 40
    too_much = {
        " ".join(["opsctl", *words, "--help"]): sorted(names)
        for words, names in zip(commands, imported, strict=True)
        if names
    }
    assert too_much == {}
