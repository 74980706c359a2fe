"""What a server and everybody else used of the machine, from /proc. A server is all processes of its session."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """Up to now."""

    cpu_s: float
    resident_mib: float  # now
    peak_mib: float  # the sum of each process's own peak


def used_by(session: int) -> Used:
    """What the living processes of a session have used."""
    cpu_s = resident_mib = peak_mib = 0.0
    for pid in pids_of(session):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            continue
        cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        kib = {line.split()[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith("kB")}
        resident_mib += kib.get("VmRSS:", 0) / 1024
        peak_mib += kib.get("VmHWM:", 0) / 1024
    return Used(cpu_s, resident_mib, peak_mib)


def pids_of(session: int) -> list[int]:
    """Every living process of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getsid(int(entry)) == session:
                    found.append(int(entry))
            except ProcessLookupError:
                continue
    return found


def pause(session: int) -> None:
    """Stop a server's processes where they are, so that it uses nothing while another is measured."""
    _signal_all(session, signal.SIGSTOP)


def resume(session: int) -> None:
    """Let them go on."""
    _signal_all(session, signal.SIGCONT)


def kill(session: int) -> None:
    """End them."""
    _signal_all(session, signal.SIGKILL)


def _signal_all(session: int, number: signal.Signals) -> None:
    for pid in pids_of(session):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def machine_busy_s() -> float:
    """Seconds that the cores of this machine have worked for anybody, or were taken away by its host."""
    user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / _TICKS_PER_S
