"""
Change the code that decides which rows land, one place at a time, and list the changes that no test notices.

The changes (mutants) are those of mutmut. Its own runner starts a pytest session for each of them; here one session
imports Airflow and collects the tests once, and a process is forked for each mutant. In it the function's code is
replaced, and the tests that call the function run, the fastest first, until one fails.

A survivor is accepted if ``docs/mutation.md`` explains it.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.util
import inspect
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

import hypothesis
import libcst as cst
import pytest
from _pytest.runner import runtestprotocol
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "airflow_provider_stem"

# The tests that should kill each module's mutants; fast ones, since every survivor runs all of them.
MODULES = {
    "streams/windows": ["tests/streams/test_windows.py"],
    "intervals": ["tests/test_intervals.py", "tests/test_schedules.py", "-k", "not /15"],
    "streams/merging": ["tests/streams/test_merging.py"],
    "streams/objects": ["tests/streams/test_objects.py"],
    "streams/store": ["tests/streams/test_objects.py", "tests/streams/test_store.py"],
    "api/paging": ["tests/api/test_paging.py"],
    "ledger": ["tests/test_ledger.py"],
    "streams/decoding/plain": ["tests/streams/test_decoding.py", "-k", "not end_the_process"],
    "streams/decoding/columnar": [
        "tests/streams/test_decoding.py",
        "-k",
        "not end_the_process and not take_no_memory and not whole_year",
    ],
}
_MAX_EXAMPLES = 50
_CPU_SECONDS = 5  # beside three times what the tests take without a mutant
_HUNG_AFTER = 300  # seconds, beside 20 times the CPU time, in which a mutant does not use up its CPU time: it waits
_SURVIVED, _KILLED, _FAILED = 0, 1, 3
_STATUS = {
    _SURVIVED: "survived",
    _KILLED: "killed",
    _FAILED: "not tested",
    -signal.SIGALRM: "hung",
    -signal.SIGKILL: "endless",  # by the limit of its CPU time
    -signal.SIGXCPU: "endless",
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A function, by its qualified name, the module's source with the change, and a line that describes it."""

    function: str
    source: bytes
    description: str


class _Visitor(MutationVisitor):  # type: ignore[misc]
    """Mutate decorated functions too: here they are not called by another name."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return not (isinstance(node, cst.FunctionDef) and node.decorators) and super()._skip_node_and_children(node)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Iterate over the mutants of the functions and methods of a module."""
    visitor = _Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    text = path.read_bytes()
    wrapper = MetadataWrapper(cst.parse_module(text))
    module = wrapper.visit(visitor)
    spans = wrapper.resolve(ByteSpanPositionProvider)
    names: dict[cst.CSTNode, str] = {}
    for item in module.body:
        members = item.body.body if isinstance(item, cst.ClassDef) else [item]
        prefix = f"{item.name.value}." if isinstance(item, cst.ClassDef) else ""
        names |= {one: f"{prefix}{one.name.value}" for one in members if isinstance(one, cst.FunctionDef)}
    for mutation in visitor.mutations:
        if function := names.get(mutation.contained_by_top_level_function):
            before, after = (module.code_for_node(one) for one in (mutation.original_node, mutation.mutated_node))
            begin = spans[mutation.original_node].start
            source = text[:begin] + after.encode() + text[begin + spans[mutation.original_node].length :]
            description = _difference(*(re.sub(r"\s+", " ", one).strip() for one in (before, after)))
            yield Mutant(function, source, f"{function}: {description}")


def _difference(before: str, after: str) -> str:
    """Return ``a[b -> c]d``: what changes, and some characters around it."""
    start = _equal(before, after)
    end = _equal(before[start:][::-1], after[start:][::-1])
    upto, until = len(before) - end, len(after) - end
    return (
        f"{before[max(0, start - 30) : start]}[{before[start:upto]} -> {after[start:until]}]{before[upto : upto + 30]}"
    )


def _equal(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _function(namespace: Any, name: str) -> Any:
    for part in name.split("."):
        namespace = inspect.getattr_static(namespace, part)
    if isinstance(namespace, property):
        return namespace.fget
    return inspect.unwrap(getattr(namespace, "__func__", namespace))


def _replace(functions: Iterable[str], module: Any, source: bytes | ast.Module) -> None:
    """Replace the code of functions of a module by that of a changed source."""
    changed = importlib.util.module_from_spec(module.__spec__)
    sys.modules[module.__name__] = changed  # where dataclasses look for their module
    exec(compile(source, module.__file__, "exec"), vars(changed))  # noqa: S102
    sys.modules[module.__name__] = module
    for name in functions:
        to, by = _function(module, name), _function(changed, name)
        to.__code__, to.__defaults__, to.__kwdefaults__ = by.__code__, by.__defaults__, by.__kwdefaults__


class Runner:
    """A pytest plugin that runs the tests once for each mutant, instead of once."""

    def __init__(self, module: str) -> None:
        self.module = importlib.import_module(f"{PACKAGE}.{module}".replace("/", "."))
        self._output = os.fdopen(os.dup(sys.stderr.fileno()), "w")  # pytest redirects the original
        self.results: Counter[str] = Counter()
        self.survivors: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Stop a property at its first failure, instead of searching for the simplest one."""
        for item in items:
            test = getattr(getattr(item, "obj", None), "__func__", getattr(item, "obj", None))
            if inner := getattr(test, "_hypothesis_internal_use_settings", None):
                test._hypothesis_internal_use_settings = hypothesis.settings(  # type: ignore[union-attr]  # noqa: SLF001
                    inner,
                    max_examples=min(inner.max_examples, _MAX_EXAMPLES),
                    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
                )

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Find out which tests call which function, then test each mutant."""
        uses_s3 = [item for item in session.items if "s3_server" in getattr(item, "fixturenames", ())]
        if _run(uses_s3[:1]) != _SURVIVED:  # starts the server for all mutants
            pytest.exit("The tests fail without a mutant.", returncode=2)
        with tempfile.NamedTemporaryFile() as file:
            if _in_fork(lambda: self._calls(session.items, Path(file.name))) != _SURVIVED:
                pytest.exit("The tests fail without a mutant.", returncode=2)
            calls: list[list[Any]] = json.load(file)
        gc.collect()
        gc.freeze()  # otherwise each process would copy what is collected already
        by_time = sorted(zip(calls, session.items, strict=True), key=lambda one: one[0][0])
        for mutant in mutants_of(Path(str(self.module.__file__))):
            chosen = [(seconds, item) for (seconds, functions), item in by_time if mutant.function in functions]
            limit = _CPU_SECONDS + 3 * sum(seconds for seconds, _ in chosen)

            def run(mutant: Mutant = mutant, chosen: Any = chosen, limit: float = limit) -> int:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(int(_HUNG_AFTER + 20 * limit))
                resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + limit),) * 2)
                _replace([mutant.function], self.module, mutant.source)
                return _run([item for _, item in chosen])

            result = _in_fork(run)
            status = _STATUS.get(result, f"exit {result}")
            self.results[status] += 1
            if result in {_SURVIVED, _FAILED}:
                self.survivors.append(mutant.description)
            print(f"{status}  {mutant.description}", file=self._output, flush=True)
        return True

    def _calls(self, items: list[pytest.Item], file: Path) -> int:
        """Write for each test how long it takes and which functions of the module it calls."""
        called: set[str] = set()
        functions = set()
        tree = ast.parse(Path(str(self.module.__file__)).read_text())
        for part in tree.body:
            for function in part.body if isinstance(part, ast.ClassDef) else [part]:
                if isinstance(function, ast.FunctionDef):
                    name = f"{part.name}.{function.name}" if isinstance(part, ast.ClassDef) else function.name
                    functions.add(name)
                    function.body[:0] = ast.parse(f"_called.add({name!r})").body
        vars(self.module)["_called"] = called
        _replace(functions, self.module, ast.fix_missing_locations(tree))
        calls = []
        for number, item in enumerate(items):
            for cached in vars(self.module).values():
                if clear := getattr(cached, "cache_clear", None):
                    clear()
            began = time.process_time()
            called.clear()
            if failed := _run([item], then=items[number + 1 : number + 2]):
                return failed
            calls.append([time.process_time() - began, sorted(called)])
        file.write_text(json.dumps(calls))
        return _SURVIVED


def _run(items: list[pytest.Item], then: Iterable[pytest.Item] = ()) -> int:
    """Run tests, and keep the fixtures of the session: the S3 server is that of the parent process."""
    for item, following in zip_longest(items, [*items[1:], *then]):
        reports = runtestprotocol(item, nextitem=following or item.session, log=False)  # type: ignore[arg-type]
        if any(report.failed for report in reports):
            return _KILLED
    return _SURVIVED


def _in_fork(action: Any) -> int:
    """Return the exit code of an action in a forked process; negative if a signal ended it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os._exit(action())
    finally:
        os._exit(_FAILED)


def main() -> int:
    """Run the modules that are named, by default all, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    modules = parser.parse_args().modules or list(MODULES)
    if len(modules) > 1:
        return max(subprocess.run([sys.executable, __file__, one], check=False).returncode for one in modules)
    runner = Runner(modules[0])
    code = pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *MODULES[modules[0]]], plugins=[runner])
    explained = (ROOT / "docs" / "mutation.md").read_text()
    unexplained = [one for one in runner.survivors if f"`{one}`" not in explained]
    print(f"\n{modules[0]}: {runner.results.total()} mutants, {dict(runner.results)}, {len(unexplained)} not explained")
    print("\n".join(unexplained))
    return int(code) or bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
