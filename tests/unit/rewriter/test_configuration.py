"""What is wrong with [gateway] is named: file, key, reason; what is right arrives in the ruleset."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.configuration import (
    QUEUES_BY_EPOCH,
    GatewayFile,
    changed_settings,
    is_live,
    kernel_services,
    ruleset_for,
    with_live_settings,
)
from rewriter.vocabulary import MARK_BITS, MOST_SERVICES, Ports
from tracker.configuration import ConfigurationError, load

LEAST = '[gateway]\nname = "gw"\nlan = ["br0"]\nwan = "eth0"\n'
CUSEEME = '[services.cuseeme]\nprofile = "cuseeme"\n'


def loaded(tmp_path: Path, text: str) -> GatewayFile:
    path = tmp_path / "porthold.toml"
    path.write_text(text)
    return load(path, GatewayFile)


def problems(tmp_path: Path, text: str) -> list[str]:
    """Each line of what is said about the file, without the file's name, which each must begin with."""
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, text)
    lines = str(caught.value).splitlines()
    start = f"{tmp_path / 'porthold.toml'}: "
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start) for line in lines]


def gateway(tmp_path: Path, line: str) -> list[str]:
    """What is said about one more line in [gateway], which replaces that of the same key."""
    key = line.partition(" ")[0]
    kept = "".join(one for one in LEAST.splitlines(keepends=True) if one.partition(" ")[0] != key)
    return problems(tmp_path, f"{kept}{line}\n{CUSEEME}")


# --- what a running worker takes of another file ---------------------------------------------------------


def test_services_and_rules_are_taken_and_what_needs_a_restart_stays(tmp_path: Path) -> None:
    before = loaded(tmp_path, LEAST + CUSEEME)
    text = LEAST.replace("br0", "br1") + 'refusal = "drop"\nqueue_base = 20000\nstandby = true\n'
    after = loaded(tmp_path, text + '[services.chat]\ncontrol = ["udp/9000"]\nforward = ["udp/9000"]\n')
    changed = changed_settings(before, after)
    assert {key: is_live(key) for key in changed} == {
        "gateway.lan": True,
        "gateway.queue_base": False,
        "gateway.refusal": True,
        "gateway.standby": False,
        "services.chat": True,
        "services.cuseeme": True,
    }
    taken = with_live_settings(before, after)
    assert taken.gateway is not None
    assert (taken.gateway.lan, taken.gateway.refusal, taken.gateway.queue_base) == (("br1",), "drop", 17648)
    assert changed_settings(taken, after) == ["gateway.queue_base", "gateway.standby"]


# --- what is right ----------------------------------------------------------------------------------------


def test_the_least_that_is_said_gives_the_design_s_defaults(tmp_path: Path) -> None:
    section = loaded(tmp_path, LEAST + CUSEEME).gateway
    assert section is not None
    assert (section.claim_timeout_s, section.refused_s, section.refusal) == (1.0, 2.0, "icmp")
    assert (section.on_tracker_loss, section.datapath) == ("keep", "auto")
    assert (section.public_address, section.worker, section.tracker) == (None, None, None)


def test_a_file_without_a_gateway_is_good_for_all_but_the_rewriter(tmp_path: Path) -> None:
    file = loaded(tmp_path, CUSEEME)
    assert list(file.worker_problems()) == [
        ("gateway", "is missing; a rewriter needs at least name, lan and wan")
    ]
    with pytest.raises(ValueError, match="gateway"):
        ruleset_for(file, 1, native_queue=False, most_speakers=55)


def test_everything_said_arrives_in_the_ruleset(tmp_path: Path) -> None:
    text = (
        LEAST
        + 'refusal = "drop"\nrefused_s = 5.5\nmark_mask = 0x3f\nqueue_base = 100\n'
        + CUSEEME
        + 'idle_s = 12.5\n[services.web]\ncontrol = ["tcp/80"]\nforward = ["tcp/80-81", "udp/82"]\n'
    )
    file = loaded(tmp_path, text)
    rules = ruleset_for(file, 3, native_queue=True, most_speakers=55)
    assert (rules.lan, rules.wan, rules.refusal, rules.refused_s) == (("br0",), ("eth0",), "drop", 5.5)
    assert (rules.mark_mask, rules.native_queue, rules.most_speakers) == (0x3F, True, 55)
    cuseeme, web = rules.services
    assert (cuseeme.name, cuseeme.number, cuseeme.rewrites, cuseeme.idle_s) == ("cuseeme", 1, True, 12.5)
    assert (web.name, web.number, web.rewrites, web.idle_s) == ("web", 2, False, 300.0)
    assert web.forward == (Ports("tcp", 80, 81), Ports("udp", 82, 82))
    assert kernel_services(file) == rules.services


@given(epoch=st.integers(0, 2**32), base=st.integers(1, 65535 - 2 * QUEUES_BY_EPOCH))
def test_neighbouring_epochs_never_share_a_queue(epoch: int, base: int) -> None:
    section = {"name": "gw", "lan": ("br0",), "wan": "eth0", "queue_base": base}
    file = GatewayFile.model_validate({"gateway": section})
    queues: list[int] = []
    for other in range(epoch, epoch + QUEUES_BY_EPOCH):
        rules = ruleset_for(file, other, native_queue=False, most_speakers=0)
        queues += [rules.claim_queue, rules.talk_queue]
    assert len(set(queues)) == 2 * QUEUES_BY_EPOCH
    assert min(queues) >= base
    assert max(queues) <= 65535


@given(shift=st.integers(0, 32 - MARK_BITS))
def test_any_six_neighbouring_bits_are_a_mask(shift: int) -> None:
    section = {"name": "gw", "lan": ("br0",), "wan": "eth0", "mark_mask": 0x3F << shift}
    file = GatewayFile.model_validate({"gateway": section})
    assert ruleset_for(file, 1, native_queue=False, most_speakers=0).shift == shift


# --- what is wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["name", "lan", "wan"])
def test_what_a_gateway_needs_is_missed_by_name(key: str, tmp_path: Path) -> None:
    text = "".join(line for line in LEAST.splitlines(keepends=True) if not line.startswith(key))
    assert problems(tmp_path, text + CUSEEME) == [f"gateway.{key}: is missing"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('wann = "eth0"', "gateway.wann: is not known"),
        ('wan = "eth 0"', "gateway.wan: 'eth 0' is no name of a network interface"),
        ('wan = "a-name-too-long-"', "gateway.wan: 'a-name-too-long-' is no name of a network interface"),
        ('wan = "br0"', "gateway.wan: 'br0' is also in gateway.lan"),
        ('lan = ["br0", "x\\"; drop"]', "gateway.lan[1]: 'x\"; drop' is no name of a network interface"),
        (
            'public_address = "0.0.0.0"',
            "gateway.public_address: 0.0.0.0 is no address that a gateway can have",
        ),
        (
            'public_address = "224.0.0.1"',
            "gateway.public_address: 224.0.0.1 is no address that a gateway can have",
        ),
        (
            'public_address = "127.0.0.1"',
            "gateway.public_address: 127.0.0.1 is no address that a gateway can have",
        ),
        (
            f'tracker = "tcp://127.0.0.1:1"\ntracker_key = "{"x" * 40}"',
            "gateway.key: is missing, and TCP is always encrypted; make one: porthold keys worker FILE",
        ),
        ('key = "/k"', "gateway.key: has no effect without a gateway.tracker by TCP"),
        ("mark_mask = 0", "gateway.mark_mask: must be 6 neighbouring bits of 32, like 0x3f000000"),
        ("mark_mask = 0x7f", "gateway.mark_mask: must be 6 neighbouring bits of 32, like 0x3f000000"),
        ("mark_mask = 0x3e0000001", "gateway.mark_mask: must be 6 neighbouring bits of 32, like 0x3f000000"),
        ("mark_mask = -1", "gateway.mark_mask: must be 6 neighbouring bits of 32, like 0x3f000000"),
        ("mark_mask = 0xfc0000000", "gateway.mark_mask: must be 6 neighbouring bits of 32, like 0x3f000000"),
    ],
)
def test_a_bad_value_is_named_with_its_reason(line: str, expected: str, tmp_path: Path) -> None:
    assert gateway(tmp_path, line) == [expected]


@pytest.mark.parametrize(
    "line",
    [
        "lan = []",
        'lan = "br0"',
        'name = "no spaces"',
        'name = ""',
        'worker = "-"',
        'public_address = "::1"',
        'public_address = "203.0.113.300"',
        "public_address = 1",
        'tracker = "udp://127.0.0.1:1"',
        'tracker = "tcp://127.0.0.1"',
        'state_directory = "var"',
        "claim_timeout_s = 0.01",
        "claim_timeout_s = 11.0",
        'claim_timeout_s = "1"',
        "claim_timeout_s = nan",
        "refused_s = 0.0",
        "refused_s = inf",
        'refusal = "tarpit"',
        'on_tracker_loss = "drop"',
        'standby = "yes"',
        'datapath = "nft"',
        'mark_mask = "0x3f"',
        "queue_base = 0",
        "queue_base = 65535",
    ],
)
def test_what_is_out_of_bounds_is_one_problem_at_its_key(line: str, tmp_path: Path) -> None:
    (problem,) = gateway(tmp_path, line)
    key, _, reason = problem.partition(": ")
    assert key == f"gateway.{line.partition(' ')[0]}"
    assert reason


def test_a_fenced_gateway_needs_a_lease_in_which_heartbeats_find_room(tmp_path: Path) -> None:
    fenced = '[gateway]\nname = "gw"\nlan = ["br0"]\nwan = "eth0"\non_tracker_loss = "fence"\n' + CUSEEME
    (problem,) = problems(tmp_path, "[tracker]\nlease_s = 0.9\n" + fenced)
    assert problem.startswith("tracker.lease_s: ")


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, '[gateway]\nname = "gw"\nlan = ["br0"]\nmark_mask = 1\nspeed = 9\n' + CUSEEME)
    assert sorted(line.partition(": ")[0] for line in found) == [
        "gateway.mark_mask",
        "gateway.speed",
        "gateway.wan",
    ]


def test_there_is_room_for_so_many_services_and_no_more(tmp_path: Path) -> None:
    def services(count: int) -> str:
        return "".join(
            f'[services.s{n}]\ncontrol = ["udp/{n}"]\nforward = ["udp/{n}"]\n' for n in range(1, count + 1)
        )

    assert len(kernel_services(loaded(tmp_path, LEAST + services(MOST_SERVICES)))) == MOST_SERVICES
    (problem,) = problems(tmp_path, LEAST + services(MOST_SERVICES + 1))
    assert problem == "services: 16 are too many, the connection mark has room for 15"


def test_a_rewritten_service_can_not_have_more_ports_than_the_kernel_compares(tmp_path: Path) -> None:
    loaded(tmp_path, LEAST + CUSEEME + 'forward = ["udp/1000-2023"]\n')
    (problem,) = problems(tmp_path, LEAST + CUSEEME + 'forward = ["udp/1000-2024"]\n')
    assert problem == "services.cuseeme.forward: 1025 rewritten ports are more than 1024"
    loaded(tmp_path, LEAST + '[services.x]\ncontrol = ["udp/1"]\nforward = ["udp/1-60000"]\n')


def test_problems_of_the_trackers_part_are_said_too(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, LEAST + CUSEEME + 'policy = "fixed"\n')
    assert problem == "services.cuseeme.holder: is missing for policy = 'fixed'"


def worker_problems(tmp_path: Path, directory: Path, services: str = CUSEEME) -> list[tuple[str, str]]:
    return list(loaded(tmp_path, f'{LEAST}state_directory = "{directory}"\n{services}').worker_problems())


def test_a_rewriter_needs_a_service_and_a_directory(tmp_path: Path) -> None:
    assert worker_problems(tmp_path, tmp_path) == []
    assert [key for key, _ in worker_problems(tmp_path, tmp_path, services="")] == ["services"]
    missing = tmp_path / "missing"
    reason = f"there is no directory '{missing}'; make it: install -d -m 0700 {missing}"
    assert worker_problems(tmp_path, missing) == [("gateway.state_directory", reason)]


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may write everywhere; access(2) asks for the real user, so that one is given up meanwhile."""
    user = os.getuid()
    if user == 0:
        os.setresuid(65534, -1, -1)
    yield
    os.setresuid(user, -1, -1)


def test_a_directory_that_can_not_be_written_is_said(tmp_path: Path, nobody: None) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o500)
    reason = f"'{directory}' is not writable for this user"
    assert worker_problems(tmp_path, directory) == [("gateway.state_directory", reason)]
