"""A site's edge: a firewall and, behind it, an address translator, over one connection each.

    actornet run examples/edge.py:Edge --read examples/captures/skype.pcap --set 'rules=deny to any port 53,allow on lan'

The firewall stands at the inside: what it lets through leaves from the external address (`--set address=`), and answers come
to it translated back. Both have offloaded what goes on, so the core carries it in one step. `actornet launch` takes a chain as
it takes any network function, and a backup has both members' state in one record.
"""

from actornet import Chain
from actors.firewall import Firewall
from actors.nat import SourceNAT

Edge = Chain(Firewall, SourceNAT)
