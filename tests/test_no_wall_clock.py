"""No test fails because the machine is busy: code that limits or asserts a wall time must be listed here."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import indent

import pytest

from tests.servers.processes import HUNG_AFTER

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("scripts/*.py")]
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns"}
# Methods whose first argument is a time-out in seconds.
GIVE_UP = {"communicate", "exception", "join", "result", "wait"}
# Arguments that are a time-out.
LIMITS = {"timeout", "within", "deadline", "patience"}
# Callables whose arguments of these names belong to the provider and use the test's clock.
OWN = {"StemStreamsSensor", "StemStreamsTrigger", "dict", "replace", "trigger", "wait", "widgets", "sensor_in_dag"}

_EXPRESSIONS = (ast.Attribute, ast.BinOp, ast.Compare, ast.Constant, ast.IfExp, ast.Name, ast.UnaryOp)
NUMERIC = (*_EXPRESSIONS, ast.expr_context, ast.cmpop, ast.operator, ast.unaryop)

ALLOWED = {
    "tests/servers/airflow_api.py:": "Components of Airflow that block each other on SQLite continue once one fails.",
    "scripts/demo.py:_start": "Seconds in which a program may shut down before it is killed.",
    "tests/examples/test_newcomer.py:stop": "Seconds in which a program may shut down before it is killed.",
    "tests/servers/s3.py:__exit__": "Acknowledged data is on disk, so it may be killed after two seconds.",
    "tests/api/conftest.py:answer": "The pace of a drip.",
    "tests/api/test_transport.py:test_no_message_or_log_contains_it": "The client's timeout: no answer ever comes.",
    "tests/campaigns/test_the_key.py:run": "The pace of a loop.",
    "tests/api/test_transport.py:test_a_hung_socket_raises_in_time": "The client's timeout: the answer never comes.",
    "tests/api/test_key.py:test_no_view_of_a_config_shows_the_key": "A field of a configuration that is not used.",
    "tests/api/test_transport.py:test_a_slow_drip_ends": "The client's timeout: the answer never ends.",
    "tests/api/test_transport.py:test_a_slow_drip_of_the_proxy_itself_ends": "The client's timeout: it never ends.",
    "tests/api/test_transport.py:test_without_end_are_a_timeout": "The client's timeout: the answer never ends.",
    "tests/api/test_transport.py:test_a_slow_drip_raises_in_time": "The client's timeout: the answer never ends.",
    "tests/api/test_transport.py:test_an_error_status_counts_with_a_slow_body": "Seconds of a clock that counts reads.",
    "tests/api/test_transport.py:test_https_to_a_server_without_tls": "The client's timeout: no handshake ever comes.",
    "tests/cluster/dags/waiting.py:": "The argument of a sensor in a DAG.",
    "tests/cluster/test_cluster.py:run": "The pace of a gauge.",
}


def is_short(node: ast.expr) -> bool:
    """Return whether an expression is a number of seconds with a literal above zero; generous limits are names."""
    parts = list(ast.walk(node))
    if not all(isinstance(one, NUMERIC) for one in parts):
        return False
    numbers = [one.value for one in parts if isinstance(one, ast.Constant)]
    return any(isinstance(number, (int, float)) and number > 0 for number in numbers if number is not True)


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def reads_clock(node: ast.AST, names: set[str]) -> bool:
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr in CLOCKS:
            if getattr(one.func.value, "id", "") == "time":
                return True
        elif isinstance(one, ast.Name) and one.id in names:
            return True
    return False


def moments(scope: ast.AST) -> set[str]:
    """Return the names that hold readings of a clock or are computed from them."""
    found: set[str] = set()
    while True:
        more = set(found)
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and reads_clock(node.value, found):
                more |= {one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)}
            elif isinstance(node, ast.Call) and name_of(node) == "append" and reads_clock(node, found):
                more |= {one.id for one in ast.walk(node.func) if isinstance(one, ast.Name)}
        if more == found:
            return found
        found = more


def bounds_time_above(node: ast.Compare, names: set[str]) -> bool:
    sides = [node.left, *node.comparators]
    for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
        # Two readings are the time and a deadline, which is checked at its assignment.
        match operator, reads_clock(left, names), reads_clock(right, names):
            case (ast.Lt() | ast.LtE(), True, False) | (ast.Gt() | ast.GtE(), False, True):
                return True
    return False


def is_limit(node: ast.AST, names: set[str]) -> bool:
    match node:
        case ast.Assert():
            return any(bounds_time_above(one, names) for one in ast.walk(node) if isinstance(one, ast.Compare))
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name.endswith(("TIMEOUT", "WITHIN")) and is_short(node.value)
        case ast.arguments():
            named = [*node.posonlyargs, *node.args]
            given = [
                *zip(named[::-1], node.defaults[::-1], strict=False),
                *zip(node.kwonlyargs, node.kw_defaults, strict=True),
            ]
            return any(one.arg in LIMITS and value is not None and is_short(value) for one, value in given)
        case ast.BinOp(op=ast.Add()):  # a deadline
            return any(reads_clock(one, set()) for one in (node.left, node.right)) and any(
                is_short(one) for one in (node.left, node.right)
            )
        case ast.Call():
            name = name_of(node)
            of_pytest = name == "timeout" and ast.unparse(node.func).endswith("mark.timeout")
            of_asyncio = ast.unparse(node.func) in ("asyncio.timeout", "asyncio.wait_for")
            gives_up = name in GIVE_UP and isinstance(node.func, ast.Attribute)
            short = [one for one in node.args if is_short(one)] if of_pytest or of_asyncio or gives_up else []
            own = isinstance(node.func, ast.Name) and name in OWN
            short += [one.value for one in node.keywords if one.arg in LIMITS and not own and is_short(one.value)]
            return bool(short)
    return False


def limits(tree: ast.AST) -> set[str]:
    """Return the names of the innermost functions that limit a wall time."""
    found: set[str] = set()
    pending: list[tuple[ast.AST, str, set[str]]] = [(tree, "", set())]
    while pending:
        node, function, names = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function, names = node.name, names | moments(node)
        if is_limit(node, names):
            found.add(function)
        pending += [(child, function, names) for child in ast.iter_child_nodes(node)]
    return found


@pytest.mark.parametrize(
    "code",
    [
        "assert time.monotonic() - began < 4",
        "began = time.perf_counter()\ntook = time.perf_counter() - began\nassert took <= 0.3",
        "took = []\ntook.append(time.monotonic() - began)\nassert 2 > max(took)",
        "deadline = time.monotonic() + 30",
        "process.communicate(timeout=60)",
        "requests.get(url, timeout=0.2)",
        "future.result(10)",
        "event.wait(timeout=2 * 5)",
        "asyncio.timeout(30)",
        "pytestmark = [pytest.mark.timeout(240)]",
        "connect(server, timeout=0.3 if slow else HUNG_AFTER)",
        "_READY_WITHIN = 60.0",
        "def until(condition, within=30): pass",
        "def until(condition, *, within=30): pass",
    ],
)
def test_a_limit_is_found(code: str) -> None:
    assert limits(ast.parse(f"def test():\n{indent(code, '    ')}"))


@pytest.mark.parametrize(
    "code",
    [
        "assert time.monotonic() - began >= 0.6",
        "assert time.process_time() - began < 5",
        "deadline = time.monotonic() + HUNG_AFTER",
        "process.communicate(timeout=HUNG_AFTER)",
        "pytest.mark.timeout(0)",
        "StemStreamsSensor(task_id='wait', timeout=60)",
        "thread.join()",
        "', '.join(names)",
    ],
)
def test_code_that_a_busy_machine_does_not_change_is_not_a_limit(code: str) -> None:
    assert limits(ast.parse(code)) == set()


def test_the_time_limit_of_tests_ends_only_tests_that_hang(request: pytest.FixtureRequest) -> None:
    assert float(request.config.getini("timeout")) >= 2 * HUNG_AFTER


def test_no_test_limits_a_wall_time() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{function}"
        for path in FILES
        if path != Path(__file__)
        for function in limits(ast.parse(path.read_text()))
    }
    assert found == ALLOWED.keys()
