"""What Prometheus gets from a tracker: by HTTP, in its own format, while the loop goes on."""

import signal
import socket
import urllib.request
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from tests.crash.place import Place, claim, hole, opening, settle
from tools.lab import wait_until


def free_port() -> int:
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        port: int = asking.getsockname()[1]
        return port


def samples(port: int) -> dict[tuple[str, ...], float]:
    """By name and labels' values."""

    def read() -> Iterator[tuple[tuple[str, ...], float]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                yield (sample.name, *sample.labels.values()), sample.value

    return dict(read())


def test_a_tracker_s_metrics_say_how_it_stands(place: Place) -> None:
    port = free_port()
    place.write_configuration(metrics=f"127.0.0.1:{port}")
    place.start()
    client = place.client()
    settle(client, opening(), claim(1, 1), claim(1, 2), hole(1), claim(9, 3))
    wait_until(lambda: samples(port).get(("porthold_log_records",)) == 6, "all records in the metrics", 10)
    found = samples(port)
    assert found["porthold_tracker_claims_granted_total",] == 2
    assert found["porthold_tracker_claims_refused_total", "stale-epoch"] == 1
    assert found["porthold_tracker_messages_total", "claims granted"] == 2
    assert found["porthold_tracker_bindings", "gw"] == 2
    assert 0 <= found["porthold_tracker_heartbeat_age_seconds", "gw"] < 60
    assert found["porthold_tracker_worker_lost", "gw"] == 0
    assert found["porthold_log_bytes", "database"] + found["porthold_log_bytes", "wal"] > 4096
    assert found["porthold_tracker_append_seconds_count",] >= 2
    assert found["porthold_tracker_append_records_sum",] == 6
    assert found["porthold_told_timestamp_seconds",] > 1_700_000_000
    assert found["process_resident_memory_bytes",] > 1_000_000
    client.close()
    assert place.kill(signal.SIGTERM)[0] == 0


def test_a_stopped_loop_is_seen_by_the_time_of_its_last_word(place: Place) -> None:
    port = free_port()
    place.write_configuration(metrics=f"127.0.0.1:{port}")
    place.start()
    told = ("porthold_told_timestamp_seconds",)
    before = samples(port)[told]
    wait_until(lambda: samples(port)[told] > before, "a newer word of an idle loop", 10)


def test_an_address_that_is_taken_is_refused_at_start(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place.write_configuration(metrics=f"127.0.0.1:{other.getsockname()[1]}")
        refused = place.begin()
        _, said = refused.communicate(timeout=20)
    assert refused.returncode == 2
    assert "nothing can listen at 127.0.0.1:" in said
    assert "Traceback" not in said
