"""The power driver that a host's config asks for."""

from __future__ import annotations

from nicagent.config import GpioPower, IpmiPower
from nicagent.power.contract import PowerDriver


def make_power(host_name: str, config: GpioPower | IpmiPower) -> PowerDriver:
    """The driver for one host, not yet started. Imports only the kind that is wanted: an agent without lines
    never loads gpiozero.
    """
    if isinstance(config, GpioPower):
        from nicagent.power.gpio import GpioPowerDriver

        return GpioPowerDriver(host_name, config)
    from nicagent.power.ipmi import IpmiPowerDriver

    return IpmiPowerDriver(host_name, config)
