"""A tree of files as an Orin with L4T R36 has them below /sys, /proc, /var and /etc."""

from __future__ import annotations

from pathlib import Path

# What `type` and `temp` of an AGX Orin's thermal zones say while the CV cluster sleeps.
ZONES = {
    "cpu-thermal": "47406",
    "gpu-thermal": "43468",
    "cv0-thermal": None,  # reading `temp` fails
    "cv1-thermal": "N/A",
    "cv2-thermal": "-256000",
    "soc0-thermal": "44843",
    "tj-thermal": "47406",
    "tboard-thermal": "35250",
}
COOLERS = {
    "cpufreq-cpu0": "3",  # a limit of the power mode: no throttling
    "pwm-fan": "2",
    "cpu-throttle-alert": "0",
    "gpu-throttle-alert": "0",
    "hot-surface-alert": "0",
}
RAILS = {
    "hwmon1": (("VDD_GPU_SOC", "19136", "416"), ("VDD_CPU_CV", "19136", "152")),
    "hwmon2": (("NC", "0", "0"), ("VIN_SYS_5V0", "5032", "724"), ("NC", "0", "0")),
}
NVPMODEL = """
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=3 NAME=MODE_50W >
< PM_CONFIG DEFAULT=2 >
"""


def write(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
    return file


def write_orin(root: Path) -> Path:
    """Write the tree below `root` and return it."""
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    write(root, "var/lib/nvpmodel/status", "pmode:0003")
    write(root, "etc/nvpmodel.conf", NVPMODEL)
    for number, (name, temperature) in enumerate(ZONES.items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        write(root, f"{zone}/type", name)
        if temperature is None:
            (root / zone / "temp").mkdir()  # an error of reading, as EAGAIN is one
        else:
            write(root, f"{zone}/temp", temperature)
    for number, (name, state) in enumerate(COOLERS.items()):
        write(root, f"sys/class/thermal/cooling_device{number}/type", name)
        write(root, f"sys/class/thermal/cooling_device{number}/cur_state", state)
    for chip, rails in RAILS.items():
        write(root, f"sys/class/hwmon/{chip}/name", "ina3221")
        write(root, f"sys/class/hwmon/{chip}/in7_label", "sum of shunt voltages")
        for channel, (label, millivolts, milliamperes) in enumerate(rails, start=1):
            write(root, f"sys/class/hwmon/{chip}/in{channel}_label", label)
            write(root, f"sys/class/hwmon/{chip}/in{channel}_input", millivolts)
            write(root, f"sys/class/hwmon/{chip}/curr{channel}_input", milliamperes)
    write(root, "sys/class/hwmon/hwmon0/name", "pwmfan")
    write(root, "sys/class/hwmon/hwmon3/name", "soctherm_oc")
    set_power_events(root, 0, 15, 37)
    write(root, "sys/devices/platform/bus@0/17000000.gpu/load", "937")
    write(root, "sys/class/devfreq/17000000.gpu/cur_freq", "1300500000")
    write(root, "sys/class/devfreq/15340000.vic/cur_freq", "729600000")
    for policy, kilohertz in (("policy0", "2201600"), ("policy4", "729600")):
        write(root, f"sys/devices/system/cpu/cpufreq/{policy}/scaling_cur_freq", kilohertz)
    set_cpu_ticks(root, busy=1000, idle=9000)
    write(
        root,
        "proc/meminfo",
        "MemTotal:       64349696 kB\nMemFree:         1000 kB\nMemAvailable:   32174848 kB",
    )
    write(root, "proc/uptime", "3605.12 40000.00")
    for interface, sent, received in (
        ("lo", "9", "9"),
        ("eth0", "1000", "2000"),
        ("wlan0", "5", "6"),
    ):
        write(root, f"sys/class/net/{interface}/statistics/tx_bytes", sent)
        write(root, f"sys/class/net/{interface}/statistics/rx_bytes", received)
    return root


def set_power_events(root: Path, under_voltage: int, average: int, instant: int) -> None:
    for number, count in enumerate((under_voltage, average, instant), start=1):
        write(root, f"sys/class/hwmon/hwmon3/oc{number}_event_cnt", str(count))


def set_cpu_ticks(root: Path, *, busy: int, idle: int) -> None:
    write(root, "proc/stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 0 0 2 0 0 0 0 0 0")


def set_alert(root: Path, name: str, state: int) -> None:
    number = list(COOLERS).index(name)
    write(root, f"sys/class/thermal/cooling_device{number}/cur_state", str(state))
