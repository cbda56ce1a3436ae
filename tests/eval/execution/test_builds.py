"""What was compiled is kept, for later runs, too."""

from eval.execution import builds
from eval.execution.builds import PLAIN, Builds, Built


def test_builds_are_kept_by_source_flags_and_compiler(tmp_path, monkeypatch):
    commands = []

    def compiled(sandbox, command, folder, readonly):
        commands.append(command)
        return Built(folder)

    def count(source="int x;", flags=()):
        before = len(commands)
        Builds(tmp_path).cpp(None, source, PLAIN, flags, False)
        return len(commands) - before

    monkeypatch.setattr(builds, "_compiled", compiled)
    monkeypatch.setattr(builds, "_made_by", lambda tool: ("first",))
    monkeypatch.setattr(builds, "_tool", lambda tool: tool)
    assert [count(), count(), count("int y;"), count(flags=("-lm",)), count()] == [2, 0, 1, 1, 0]
    monkeypatch.setattr(builds, "_made_by", lambda tool: ("second",))
    assert [count(), count()] == [2, 0]
    monkeypatch.setattr(builds, "CPP_FLAGS", ("-std=gnu++23",))
    assert [count(), count()] == [2, 0]
    assert [count(), count("int y;")] == [0, 1]
