"""The scheduler: one service a file, each a short guarded statement or two, run by `manage.py scheduler`."""

from queues.scheduler import (
    breakers,
    confirmations,
    deferral,
    expire,
    housekeeping,
    probes,
    prune,
    rescue,
    rollup,
    schedules,
    switches,
)
from queues.scheduler.service import Service, register, registered, run_forever
from queues.scheduler.stage import Stage


def register_services() -> None:
    """Register the services of `queues`."""
    register(Service(name="stage", every_seconds=0.05, run_once=Stage().run_once))
    register(Service(name="rescue", every_seconds=1.0, run_once=rescue.run_once))
    register(Service(name="expire", every_seconds=1.0, run_once=expire.run_once))
    register(Service(name="checks", every_seconds=0.25, run_once=confirmations.Checks().run_once))
    register(Service(name="deadlines", every_seconds=1.0, run_once=confirmations.end_waits))
    register(Service(name="callbacks", every_seconds=2.0, run_once=confirmations.Matching().run_once))
    register(Service(name="schedules", every_seconds=1.0, run_once=schedules.Schedules().run_once))
    register(Service(name="probes", every_seconds=1.0, run_once=probes.Probes().run_once))
    register(Service(name="breakers", every_seconds=1.0, run_once=breakers.run_once))
    register(Service(name="rollup", every_seconds=1.0, run_once=rollup.run_once))
    register(Service(name="deferral", every_seconds=2.0, run_once=deferral.run_once))
    register(Service(name="switches", every_seconds=5.0, run_once=switches.run_once))
    register(Service(name="prune", every_seconds=600.0, run_once=prune.run_once))
    register(Service(name="housekeeping", every_seconds=600.0, run_once=housekeeping.run_once))


__all__ = ["Service", "register", "register_services", "registered", "run_forever"]
