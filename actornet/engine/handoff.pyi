from actornet.engine.ring import Ring

class Handoff:
    outgoing: Ring
    incoming: Ring
    def __init__(self, outgoing: Ring, incoming: Ring) -> None: ...
