"""Watch web requests for attacks, and say which connections had one; nothing is blocked.

    actornet run examples/web_watch.py:WebWatch --read examples/captures/web_attack.pcap --inside 172.16.0.0/16 --quiet

`IDS` searches the bytes of each connection in order, however they were cut into packets. Its owner keeps the alerts, so they
are in the log: `actornet replay state LOG sentinel`.
"""

from actornet import setting
from actors.ids import IDS


class WebWatch(IDS):
    block = setting(False, "end attacking connections, and shut their clients out")

    def on_alert(self, rule: str, excerpt: str) -> None:
        print(f"{rule} in {self.flow}: {excerpt!r}")
