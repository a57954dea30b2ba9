from actornet.engine.handoff import Handoff

class Siblings:
    handoffs: list[Handoff | None]
