"""The monitor: what the machine and the other agents say, for MQTT and for Prometheus."""
