"""The running gateway: the parts wired together, and the order in which they start and stop.

Start: the admin address answers, the relay's addresses are taken, the agent is asked who it is, the catalog is
learned; then the relay listens, and only then the gateway is registered, so that no one is sent to a gateway that
knows nothing. Stop (drain): not ready, deregistered, a moment in which clients that have not heard of it are still
served, no new clients, and the open streams run out or are cut at the drain timeout.

An upgrade is neither: the next version begins with all that this one has (`upgrade_record`), and serves at once.

What always holds: nothing that happens to Consul touches a stream, and a table is only ever replaced by a newer one.
"""

import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog
import trio

from meshgate.adapters.consul import CatalogWatcher, Home, RegistrationError, WatchRegistry, wait_for_agent
from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, ConsulConfigError
from meshgate.adapters.error_words import words_of
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.relay.sandbox import Mode, support
from meshgate.adapters.relay.worker_process import WorkerPolicy
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.errors import CommandError, ConfigError
from meshgate.app.gateway.draining import drain_relay
from meshgate.app.gateway.from_settings import is_enterprise, limits_of, listen_addresses, partition_of
from meshgate.app.gateway.last_known import AGENT_PATIENCE, CATALOG_PATIENCE, LastKnown
from meshgate.app.gateway.on_demand_discovery import OnDemandDiscovery
from meshgate.app.gateway.registration import GatewayRegistration
from meshgate.app.gateway.stream_observer import StreamObserver
from meshgate.app.gateway.table_keeper import TableKeeper, export_problems, tell_ready
from meshgate.app.gateway.upgrade import SIGNALS, Upgrader, identity_of
from meshgate.app.gateway.upgrade_record import (
    FORMAT,
    CatalogLeft,
    ConsulLeft,
    HandOver,
    LogsLeft,
    OnlookersLeft,
    ProcessLeft,
    Taken,
)
from meshgate.app.logs import logs
from meshgate.app.logs.access_log import AccessLog
from meshgate.app.settings.settings import Reload, Settings
from meshgate.core.catalog import Snapshot

log = structlog.get_logger(module="meshgate")

# Signals within so many seconds are one wish: supervisors signal a process, and then its group.
ONE_STOP_SECONDS: Final = 1.0
# Seconds that the log may take before an upgrade; lines that it does not take then are lost with the old program.
_LOG_FLUSH: Final = 2.0
# Seconds that new workers have to take over; an upgrade counts as done then, whatever the old ones keep.
_TAKE_OVER: Final = 60.0
_NOT_LAST_KNOWN: Final = "no route for this name in the last known catalog; what is newer in Consul is not known"


class Gateway:
    """One gateway process. Make it inside trio with an open client to the local agent, then `await run()`."""

    def __init__(
        self, settings: Settings, client: ConsulClient, notifier: Notifier, taken: Taken | None = None
    ) -> None:
        self.settings = settings
        self.client = client
        self._taken = taken
        before = None if taken is None else taken.record
        self.started = time.time() if before is None else before.process.started
        self.since = time.monotonic() if before is None else before.process.since
        self.observer = StreamObserver(
            None if settings.access_log == "off" else AccessLog(settings.access_log),
            self._why_unroutable,
        )
        self.discovery = OnDemandDiscovery(lambda: self.tables.table, lambda: self.watcher, self._until_answered)
        self._policy = WorkerPolicy(sandbox=Mode(settings.sandbox), memory=settings.worker_memory)
        self.relay = RelayPool(
            settings.workers,
            limits_of(settings),
            self.observer,
            settings.drain_timeout,
            settings.drain_quiet,
            lookup=self.discovery.lookup,
            may_look_up=self.discovery.may_ask,
            policy=self._policy,
            left=None if before is None else before.relay,
        )
        self.watcher: CatalogWatcher | None = None
        self.listening = False
        self.draining = False
        self._waiting = ""
        self._notifier = notifier
        self._registry = WatchRegistry(token_version=lambda: client.token.version)
        if before is not None:
            client.errors.update(before.consul.errors)
            if before.consul.login_age is not None:
                client.adopt_login(before.consul.token, before.consul.login_age)
            self._registry.remember(before.consul.watches)
        self.last_known = LastKnown(
            settings.state_dir,
            settings.service,
            settings.partition,
            lambda: self.watcher is not None and not self.watcher.stale,
        )
        self.tables = TableKeeper(settings, self.relay, notifier, self.last_known)
        self.registration = GatewayRegistration(settings, client, self._registry, self.relay, self.tables.look_from)
        self.onlookers_left: Callable[[], OnlookersLeft] = OnlookersLeft
        """What of those who look at the gateway goes on at an upgrade."""
        self.upgrader = Upgrader(
            ProcessLeft(
                python=sys.executable,
                arguments=sys.argv[1:],
                environment=dict(os.environ),
                started=self.started,
                since=self.since,
                secrets=list(settings.secrets()),
            ),
            refuse=self._why_no_upgrade,
            leave=self._left,
            settled=lambda: self.relay.told_all,
            flush=self._flush,
            streams=lambda: self.relay.active,
            notifier=notifier,
            before=before,
        )
        self._lost_before = self.relay.lost_streams
        self._agent_known = trio.Event()
        self._answered = trio.Event()
        self._drain = trio.Event()
        self._stop_signal_at: float | None = None

    @property
    def ready(self) -> bool:
        """Whether streams are served: the catalog is known, listeners are open, a worker is up, nobody asked to end."""
        return self.listening and self.relay.works and self.tables.known.is_set() and not self.draining

    @property
    def catalog_stale(self) -> bool:
        """Whether streams are placed by what was last known rather than by what Consul says now."""
        return self.last_known.from_disk or (self.watcher is not None and self.watcher.stale)

    async def _until_answered(self) -> None:
        """Wait for Consul's first answer, unless what was last known stands in for it."""
        if not self.catalog_stale:
            await self._answered.wait()

    def _why_unroutable(self, name: str) -> str:
        return self.tables.table.unroutable.get(name, "") or (_NOT_LAST_KNOWN if self.catalog_stale else "")

    def problems(self) -> list[str]:
        failing = [state.error for state in self._registry.states() if state.error]
        idle = "" if self.relay.works else "no relay process is up"
        return [
            *filter(None, [idle, self._waiting]),
            *self.relay.problems(),
            *self.client.problems(),
            *(failing if self.watcher is None else self.watcher.problems()),
            *self.last_known.problems(),
            *self.registration.problems(),
            *export_problems(self.tables.table),
        ]

    def want_records(self) -> None:
        """Have the relay tell of each stream that ends, if anybody reads that now."""
        self.relay.want_records(self.observer.wants_records)

    def drain(self) -> None:
        """Begin to stop; idempotent."""
        self._drain.set()

    async def run(self, start_onlookers: Callable[[trio.Nursery], Awaitable[None]]) -> None:
        """Serve until drained; CommandError where an address cannot be bound.

        `start_onlookers` starts what looks at the gateway while it runs.
        """
        if self._taken is not None:
            self._go_on(self._taken.record)
        else:
            self.registration.bind()
            await self.last_known.load()
        async with trio.open_nursery() as services, trio.open_nursery() as nursery:
            # First, so that an admin address that is taken is told before there are workers to end again.
            await start_onlookers(services)
            if self._taken is not None:
                self._taken.take_charge()
            services.start_soon(self.relay.run)
            services.start_soon(self.tables.names.run)
            services.start_soon(self.registration.listeners.run)
            services.start_soon(self._notifier.ping_watchdog)
            services.start_soon(self._obey_signals, services)
            services.start_soon(self.upgrader.run)
            services.start_soon(self.last_known.run)
            nursery.start_soon(self._stand_in_for_consul)
            services.start_soon(self._follow_consul, nursery)
            if self._taken is not None:
                services.start_soon(self._tell_upgraded)
                nursery.start_soon(self.registration.registrar.run)
            await self._drain.wait()
            self.draining = True
            self._notifier.stopping()
            # Whoever was never let in has nothing to hear.
            await drain_relay(
                self.relay, lambda: self.registration.give_back() and self.listening, self.settings.drain_timeout
            )
            nursery.cancel_scope.cancel()
            services.cancel_scope.cancel()

    # --- starting ------------------------------------------------------------------------------------------------

    async def _follow_consul(self, nursery: trio.Nursery) -> None:
        facts = await wait_for_agent(self.client, self._registry)
        log.info("agent found", datacenter=facts.datacenter, node=facts.node, consul=facts.version or "unknown")
        partition = partition_of(self.settings, facts)
        stood_in = self.last_known.from_disk
        self.last_known.accept(facts.datacenter, partition)
        if stood_in and not self.last_known.from_disk:
            # Streams are placed by it already, and it is of another datacenter.
            self.tables.clear()
        self._agent_known.set()
        exposed = self.settings.expose_servers
        nursery.start_soon(self.registration.registrar.follow_limits)
        if self.settings.register and not self.listening:
            await self.registration.refuse_rival()
        if not self.settings.register:
            if self._taken is None:
                nursery.start_soon(self.registration.registrar.run)
            exposed = await self.registration.existing()
        self.watcher = CatalogWatcher(
            self.client,
            self._registry,
            self._on_snapshot,
            Home(
                facts.datacenter,
                partition,
                node=self.settings.node_name or facts.node,
                enterprise=is_enterprise(self.settings, facts),
                gateway_service=self.settings.service,
                domain=facts.dns_domain,
                expose_servers=exposed,
            ),
            catalog_watches=self.settings.catalog_watches,
            enforce_exports=self.settings.enforce_exports,
        )
        nursery.start_soon(self.watcher.run)
        nursery.start_soon(self.discovery.tell_use, lambda: self.relay.totals)
        nursery.start_soon(self._complete_catalog, self.watcher)
        await self.tables.known.wait()
        self._listen()
        if self.settings.register and self._taken is None:
            nursery.start_soon(self.registration.registrar.run)

    def _listen(self) -> None:
        if self.listening or self.draining:
            return
        try:
            self.relay.listen()
        except OSError as error:
            raise CommandError(f"cannot listen: {words_of(error)}") from None
        self.listening = True
        tell_ready(self.tables.table)
        self._notifier.ready()

    # --- the catalog ---------------------------------------------------------------------------------------------

    async def _stand_in_for_consul(self) -> None:
        """Serve by the catalog on disk if Consul does not come in time."""
        with trio.move_on_after(AGENT_PATIENCE):
            await self._agent_known.wait()
        if self._agent_known.is_set():
            with trio.move_on_after(CATALOG_PATIENCE):
                await self._answered.wait()
        if self.tables.known.is_set():
            if self.watcher is None or self.watcher.snapshot is None:
                self.last_known.stand_in()  # What the version before knew is in use already.
            return
        kept = self.last_known.stand_in()
        if kept is not None:
            self.tables.names.remember(kept.addresses)
            self.tables.use(replace(kept.snapshot, expose_servers=self.settings.expose_servers))
            self.registration.stand_in()
            self._listen()

    async def _complete_catalog(self, watcher: CatalogWatcher) -> None:
        """Let go of what is used from disk as soon as Consul has answered for it."""
        before = None
        while self.last_known.kept is not None:
            await trio.sleep(1)
            pending = self.last_known.pending(watcher)
            if watcher.snapshot is None or pending == before:
                continue
            before, completed = pending, self.last_known.completed(watcher.snapshot, pending)
            if completed != self.tables.snapshot:
                self.tables.use(completed)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        kept = self.last_known.kept
        if kept is not None:
            self.tables.names.remember(kept.addresses)
        assert self.watcher is not None
        self._answered.set()
        self.tables.use(self.last_known.completed(snapshot, self.last_known.pending(self.watcher)))

    # --- upgrades ------------------------------------------------------------------------------------------------

    def _why_no_upgrade(self) -> str:
        if self.draining or self._drain.is_set():
            return "the gateway is draining"
        return "" if self.ready and self.tables.snapshot is not None else "the gateway is not ready"

    def _flush(self, seconds: float) -> bool:
        written = self.observer.flush(seconds)
        logs.flush(min(seconds, _LOG_FLUSH))
        return written

    def _left(self) -> HandOver:
        snapshot, now = self.tables.snapshot, trio.current_time()
        assert snapshot is not None
        assert self.upgrader.last is not None
        failing = [state.failing_since for state in self._registry.states() if state.failing_since is not None]
        age = self.last_known.age if self.last_known.from_disk else now - min(failing, default=now)
        login = self.client.login()
        return HandOver(
            format=FORMAT,
            identity=identity_of(self.settings),
            process=self.upgrader.process,
            relay=self.relay.left(),
            listeners=self.registration.listeners.left(),
            addresses=list(listen_addresses(self.settings)),
            catalog=CatalogLeft(
                snapshot=snapshot,
                addresses=self.tables.names.addresses,
                stale=self.catalog_stale,
                age=age,
                unhealthy=self.tables.health.left(),
            ),
            consul=ConsulLeft(
                token=self.client.token.secret(),
                login_age=None if login is None else login[1],
                errors=dict(self.client.errors),
                watches=self._registry.left(),
                registration=self.registration.registrar.left(),
            ),
            logs=LogsLeft(
                level=None if logs.level() == self.settings.log_level else logs.level(),
                dropped=logs.dropped(),
                access_dropped=self.observer.dropped,
                refusals=list(self.observer.recent),
                ended=self.observer.ended,
            ),
            onlookers=self.onlookers_left(),
            upgrade=self.upgrader.last,
            upgrades=self.upgrader.results,
        )

    def _go_on(self, before: HandOver) -> None:
        """Go on where the version before has left off; streams are served at once, whether or not Consul answers."""
        same_token = before.consul.login_age is not None or before.consul.token == self.client.token.secret()
        self.registration.go_on(before.consul.registration, before.listeners, before.addresses, same_token=same_token)
        catalog = before.catalog
        self.tables.names.remember(catalog.addresses)
        self.last_known.go_on(catalog.snapshot, catalog.addresses, catalog.age, stale=catalog.stale)
        self.tables.go_on(catalog.snapshot, catalog.unhealthy)
        self.observer.go_on(before.logs.refusals, before.logs.ended, before.logs.access_dropped)
        self.listening = before.relay.listening
        if before.logs.level is not None:
            logs.set_level(before.logs.level)
        logs.go_on(before.logs.dropped)

    async def _tell_upgraded(self) -> None:
        """Say what came of the upgrade once no worker of before takes streams any more, or new ones do not start."""
        with trio.move_on_after(_TAKE_OVER):
            await self.relay.taken_over.wait()
        assert self._taken is not None
        if self._taken.failed:
            self.upgrader.given_back(self._taken.failed)
            return
        relay = self.relay
        self.upgrader.finished(handed_over=relay.moved, kept=relay.kept, lost=relay.lost_streams - self._lost_before)

    # --- stopping ------------------------------------------------------------------------------------------------

    async def _obey_signals(self, nursery: trio.Nursery) -> None:
        with trio.open_signal_receiver(*SIGNALS) as signals:
            # The version before has blocked them, so that none was lost, and none has ended this process meanwhile.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload()
                elif number == signal.SIGUSR2:
                    nursery.start_soon(self.upgrader.by_signal)
                else:
                    self._stop_at(signal.Signals(number))

    def _stop_at(self, number: signal.Signals) -> None:
        now = trio.current_time()
        if self._stop_signal_at is None:
            self._stop_signal_at = now
            log.info("signal received", signal=number.name)
            self.drain()
        elif now - self._stop_signal_at >= ONE_STOP_SECONDS:
            log.warning("second signal: stopping at once", signal=number.name, streams=self.relay.active)
            raise SystemExit(128 + number)

    def _reload(self) -> None:
        self._notifier.reloading()
        self.observer.reopen()
        # Changed files are noticed by themselves; whoever asks need not wonder when.
        self.client.refresh()
        problem = "; ".join(self.client.problems()) or "none"
        log.info("reloaded: log files reopened, token and TLS files read again", problem=problem)
        try:
            self._take(Reload.of(self.settings))
        except (ConfigError, ConsulConfigError, RegistrationError) as error:
            self._waiting = f"settings cannot be read again, the old ones stay in use: {error}"
            log.warning("SIGHUP: settings cannot be read again, the old ones stay in use", error=str(error))
        if self.listening:
            self._notifier.ready()

    def _take(self, reload: Reload) -> None:
        """Go by settings that were read again, as far as that works without a restart."""
        settings = reload.in_force
        if settings.sandbox == Mode.REQUIRE and "MESHGATE_SANDBOX" in reload.taken and (missing := support().missing):
            raise ConfigError(f"MESHGATE_SANDBOX is require: {'; '.join(missing)}")
        token = ConsulAddress.from_settings(settings.consul).token
        self.registration.use(settings)
        self.client.token.replace(token)
        logs.set_json(json=settings.log_json)
        if "MESHGATE_LOG_LEVEL" in reload.taken:
            logs.set_level(settings.log_level)
            self.want_records()
        self.settings = settings
        self._policy.memory = settings.worker_memory
        self.tables.use_settings(settings)
        if {"MESHGATE_WORKERS", "MESHGATE_SANDBOX"}.intersection(reload.taken):
            self.relay.reshape(settings.workers, Mode(settings.sandbox))
        waiting = ", ".join(reload.waiting)
        self._waiting = f"changed, and in force only after meshgate upgrade or a restart: {waiting}" if waiting else ""
        if reload.taken:
            log.info("SIGHUP: changed settings are in force", settings=", ".join(reload.taken))
        if waiting:
            log.warning("SIGHUP: changed settings wait for meshgate upgrade or a restart", settings=waiting)
