# Numbers of a flow actor's handlers; handlers.py has their names, in the same order.
cdef enum:
    PHASE_OPEN
    PHASE_PACKET
    PHASE_CLOSE
    PHASE_MESSAGE
    PHASE_MIRROR
