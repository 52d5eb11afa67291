"""The commit of a clone, and a mark if the code differs from it."""

import re
import shutil
import subprocess

import pytest

from pgjax.lab import revision


def git(directory, *arguments):
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command = ["git", "-C", str(directory), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with the module in a package of its own."""
    package = tmp_path / "clone" / "package"
    package.mkdir(parents=True)
    module = shutil.copy(revision.__file__, package)
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "--message", "all")
    monkeypatch.setattr(revision, "PACKAGE", package)
    monkeypatch.setattr(revision, "__file__", module)
    revision.commit.cache_clear()
    yield package
    revision.commit.cache_clear()


def test_it_is_the_commit_of_the_clone(clone):
    assert revision.commit() == git(clone, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", revision.commit())


def test_changed_code_is_marked_and_other_files_are_not(clone):
    (clone.parent / "results").write_text("new")
    assert not revision.commit().endswith("-dirty")
    revision.commit.cache_clear()
    (clone / "revision.py").write_text("")
    assert revision.commit() == git(clone, "rev-parse", "HEAD") + "-dirty"


def test_a_clone_that_it_is_only_installed_within_does_not_count(clone):
    git(clone, "rm", "--quiet", "--cached", "revision.py")
    assert revision.commit() == "unknown"


def test_without_a_clone_it_is_unknown(clone):
    shutil.rmtree(clone.parent / ".git")
    assert revision.commit() == "unknown"
