"""The drivers of BMCs that are installed, Hostler's own and others."""

from importlib.metadata import entry_points

from contracts.errors import NotFound
from contracts.power import POWER_DRIVER_GROUP
from drivers.protocols import PowerDriver


class PowerDrivers:
    """Each is made when it is first asked for, and then kept."""

    def __init__(self) -> None:
        self._drivers: dict[str, PowerDriver] = {}

    @staticmethod
    def names() -> list[str]:
        """Those that can be asked for; nothing of them is imported."""
        return sorted({point.name for point in entry_points(group=POWER_DRIVER_GROUP)})

    def get(self, name: str) -> PowerDriver:
        """Raises NotFound."""
        if name not in self._drivers:
            points = entry_points(group=POWER_DRIVER_GROUP, name=name)
            if not points:
                raise NotFound(
                    f"There is no power driver {name}.",
                    remedy=f"Choose one of {', '.join(self.names())}, or install the package that "
                    f"has it, with an entry point in the group {POWER_DRIVER_GROUP}.",
                )
            self._drivers[name] = next(iter(points)).load()()
        return self._drivers[name]

    async def forget(self, host: str) -> None:
        """End what any of them keeps for the BMC of `host`."""
        for driver in self._drivers.values():
            await driver.forget(host)

    async def close(self) -> None:
        """End all of them."""
        for driver in self._drivers.values():
            await driver.close()
        self._drivers.clear()
