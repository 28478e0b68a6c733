"""A power LED, debounced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nicagent.model import Power
from nicagent.power.breaker import OPEN_AFTER, Breaker
from nicagent.power.led import PATIENCE, Led


def test_an_led_nobody_has_read_says_unknown() -> None:
    assert Led(0.1).says(0.0) is Power.UNKNOWN


def test_a_level_counts_once_it_stood_still() -> None:
    led = Led(0.1)
    led.heard(True, 10.0)
    assert led.says(10.05) is Power.UNKNOWN
    assert led.says(10.1) is Power.ON


def test_one_clean_edge_is_published_without_an_unknown_in_between() -> None:
    led = Led(0.1)
    led.heard(True, 0.0)
    led.heard(False, 10.0)
    assert led.publish(10.05) is None, "a clean edge was told as UNKNOWN on its way"
    assert led.publish(10.1) is Power.OFF


def test_lost_lines_are_published_at_once() -> None:
    led = Led(0.1)
    led.heard(True, 0.0)
    led.lost()
    assert led.publish(5.0) is Power.UNKNOWN


Gaps = st.lists(st.floats(0.001, 0.5), min_size=1, max_size=60)


@given(Gaps)
def test_what_is_said_stood_still_for_the_debounce_time(gaps: list[float]) -> None:
    led, now, lit, moved = Led(0.1), 0.0, False, 0.0
    led.heard(lit, now)
    for gap in gaps:
        now += gap
        said = led.says(now)
        assert (said is Power.UNKNOWN) == (now < moved + led.debounce), "UNKNOWN means: has not stood still"
        assert said is Power.UNKNOWN or (said is Power.ON) == lit
        lit, moved = not lit, now
        led.heard(lit, now)


@given(Gaps)
def test_watchers_hear_unknown_only_of_an_led_that_bounces_for_long(gaps: list[float]) -> None:
    led, now, restless = Led(0.1), 0.0, 0.0
    led.heard(False, now)
    for number, gap in enumerate(gaps):
        moved, now = now, now + gap
        if now >= moved + led.debounce:
            restless = now
        led.heard(number % 2 == 0, now)
        told = led.publish(now)
        expected = Power.UNKNOWN if now >= restless + led.debounce * PATIENCE else None
        assert told is expected


def test_the_breaker_opens_on_the_second_failure_and_waits_longer_each_time() -> None:
    breaker = Breaker(floor=5, ceiling=60)
    waits = []
    for _ in range(6):
        breaker.failed(100.0, "silent")
        waits.append(breaker.retry_at - 100)
    assert waits == [5, 10, 20, 40, 60, 60]
    assert breaker.is_open(159.9)
    assert not breaker.is_open(160.0)


def test_one_failure_does_not_open_the_breaker_but_a_wrong_password_does() -> None:
    breaker = Breaker(floor=5, ceiling=60)
    breaker.failed(0.0, "silent")
    assert not breaker.is_open(0.0)
    assert breaker.worked(), "an answer after a failure ends an outage"
    breaker.failed(0.0, "wrong password", for_sure=True)
    assert breaker.failures == OPEN_AFTER
    assert breaker.is_open(0.0)
