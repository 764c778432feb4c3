"""What Ray's resources cost, and what each use case may spend: the section `cost` of the settings.

It stands below the settings, which hold it.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from penstock.records import Record

SECONDS_PER_HOUR = 3600.0
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CostSettings(Record):
    """Prices and budgets, all in one currency.

    Unset, they are what AWS listed on demand for Linux in us-east-1 in June 2026, taken apart:
    m7g.large (2 CPUs, 8 GB) at 0.0816 USD an hour, two thirds of it for its CPUs, and g5.xlarge
    (4 CPUs, 16 GB, one GPU) at 1.006 USD. Put in what you pay.
    """

    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    per_cpu_hour: _Amount = 0.0272
    """Of one CPU that Ray hands out: `ray.num_logical_cpus` of them cost what the machine does."""
    per_gpu_hour: _Amount = 0.843
    per_gb_hour: _Amount = 0.0034
    """Of memory, 10^9 bytes."""
    budgets_per_month: Mapping[str, _Amount] = Field(default_factory=dict)
    """By use case; one that is not named may spend what it takes."""

    def money(self, *, cpu_s: float, gpu_s: float = 0.0, memory_gb_s: float = 0.0) -> float:
        """Say what so many seconds of each cost."""
        each = (
            cpu_s * self.per_cpu_hour,
            gpu_s * self.per_gpu_hour,
            memory_gb_s * self.per_gb_hour,
        )
        return sum(each) / SECONDS_PER_HOUR
