/* The pair and its witness, for spin: is there an order of events in which a guarantee breaks?

   Two nodes, N0 and N1, a witness, and one link at a time. What the code calls by the same name is in
   actornet/replication: protocol.py (TRANSITIONS), primary.py, backup.py, lease.py. Every step of a process below is one
   step of an owner system; between any two of them a node may die, its lease may run out, the link may break.

   What is left out: clocks (a lease just ends at some time, the holder always knows it before the witness gives it to
   another, which is what LEASE_GUARD is for), the log's contents besides epoch and a number unique to each record,
   snapshots, flows and cores. A message is taken in order or lost with its connection, as TCP does.

   Each planted bug is a macro: tests/test_model.py has spin find all of them. */

#ifndef RECORDS
#define RECORDS 4          /* length of a log */
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef BREAKS
#define BREAKS 2
#endif
#define TERM 4             /* epochs of one term */
#define EPOCHS_MAX 14

#define DEAD 0
#define BACKUP 1           /* FOLLOWING, or IN_SYNC when in_sync[] */
#define CLAIMING 2
#define PRIMARY 3
#define LOGGING 4          /* a primary that has sent a record which is not in its log yet */

#define OTHER(i) (1 - (i))

typedef Log { byte epoch[RECORDS]; byte value[RECORDS]; byte size }

/* what a node's disk keeps */
Log log[2];
byte led[2];               /* led_epoch: the last epoch that it was itself the primary of */

/* what a process has */
byte role[2];
byte epoch[2];             /* of a primary: its own; of a backup: the highest that it heard of */
byte granted[2];           /* the epoch that the witness granted it */
byte epoch_size[2];        /* commits begin with this many records: the epoch's own is among them */
bool counts[2];            /* primary: the backup counts. IN_SYNC */
bool alone[2];             /* primary: commits_alone */
bool in_sync[2];           /* backup: was told Sync */
byte sync_epoch[2];
byte acked[2];             /* primary: records that the backup has acknowledged */
byte sent[2];
byte ahead[2];             /* primary: the value of the record that was sent before it was logged */
bool joining[2];           /* primary: everything was sent, the watermark is frozen */
byte join_size[2];

/* the witness */
byte w_epoch, w_holder;
bool lease[2];             /* the holder's lease has not run out */

/* the link: from the primary to the backup and back */
bool up;
chan records = [2] of { byte, byte, byte };   /* index, epoch, value */
chan acks = [2] of { byte };
chan syncs = [1] of { byte };

/* what was seen outside: the record that an emitted output depended on */
byte out_epoch[RECORDS], out_value[RECORDS], out_size;
byte values, deaths, breaks;

#define EMITS(i) (role[i] >= PRIMARY && lease[i] && w_granted(i))
#define w_granted(i) (granted[i] == epoch[i])

inline cut() {
    up = false;
    do :: nempty(records) -> records?_,_,_ :: nempty(acks) -> acks?_ :: nempty(syncs) -> syncs?_
    :: empty(records) && empty(acks) && empty(syncs) -> break od
}

inline put(i, e, v) {
    assert(log[i].size < RECORDS);
    log[i].epoch[log[i].size] = e;
    log[i].value[log[i].size] = v;
    log[i].size++
}

inline append(i, e) {
    values++;
    put(i, e, values)
}

/* G3, G6: whoever begins to lead has all that anything outside depends on. */
inline has_all(i) {
    k = 0;
    do
    :: k < out_size ->
        assert(k < log[i].size && log[i].epoch[k] == out_epoch[k] && log[i].value[k] == out_value[k]);
        k++
    :: else -> break
    od;
    k = 0
}

inline lead(i, e) {
    has_all(i);
    role[i] = PRIMARY; epoch[i] = e; led[i] = e;
    append(i, e);
    epoch_size[i] = log[i].size;
    counts[i] = false; joining[i] = false; in_sync[i] = false; acked[i] = 0; sent[i] = 0;
    alone[i] = true
}

inline die(i) {
    role[i] = DEAD; ahead[i] = 0; granted[i] = 0; in_sync[i] = false; sync_epoch[i] = 0; counts[i] = false; joining[i] = false;
    cut()
}

/* The watermark of a primary: records that outputs may depend on. */
#define FREE_TO_COMMIT(i) (role[i] == PRIMARY && LED(i))
#ifndef LEASE_IGNORED
#define LEASE_IGNORED false
#endif
#ifdef COMMITS_WITHOUT_GRANT
#define LED(i) true
#else
#define LED(i) (granted[i] == epoch[i])
#endif

proctype node(byte i) {
    byte k, mark, e, v, other;
    other = OTHER(i);
    do
    /* -- primary -- */

    :: atomic { role[i] == PRIMARY && log[i].size < RECORDS -> append(i, epoch[i]) }   /* a core asks */

    :: atomic { role[i] == PRIMARY && up && role[other] == BACKUP && sent[i] < log[i].size && nfull(records) ->
        records!sent[i],log[i].epoch[sent[i]],log[i].value[sent[i]]; sent[i]++ }

    :: atomic { role[i] == PRIMARY && up && role[other] == BACKUP && sent[i] == log[i].size && log[i].size < RECORDS && nfull(records) ->
        values++; ahead[i] = values; records!sent[i],epoch[i],ahead[i]; sent[i]++; role[i] = LOGGING }
    :: atomic { role[i] == LOGGING -> put(i, epoch[i], ahead[i]); ahead[i] = 0; role[i] = PRIMARY }

    :: atomic { role[i] == PRIMARY && up && nempty(acks) -> acks?k; acked[i] = k; k = 0 }

    :: atomic { role[i] == PRIMARY && up && !counts[i] && !joining[i] && sent[i] == log[i].size && role[other] == BACKUP ->
        joining[i] = true; join_size[i] = log[i].size }     /* ALL_SENT: from now on the watermark stands still */

    :: atomic { role[i] == PRIMARY && up && joining[i] && acked[i] >= join_size[i] && nfull(syncs) ->      /* LAG_0 */
        joining[i] = false; counts[i] = true; alone[i] = false; syncs!epoch[i] }

    :: atomic { role[i] == PRIMARY && !up && (counts[i] || joining[i]) ->                        /* LOST */
        if
        :: counts[i] && log[i].size < RECORDS && (epoch[i] + 1) % TERM != 0 ->     /* NewEpoch: goes on alone */
            counts[i] = false; alone[i] = true;
#ifndef GOES_ON_IN_THE_SAME_EPOCH
            epoch[i]++; led[i] = epoch[i];
#endif
            append(i, epoch[i]); epoch_size[i] = log[i].size
        :: else -> joining[i] = false; counts[i] = false          /* waits, without committing */
        fi }

    :: atomic { role[i] == PRIMARY && granted[i] != epoch[i] && w_holder == i && lease[i] && w_epoch < epoch[i] ->
        w_epoch = epoch[i]; granted[i] = epoch[i] }                                   /* Swap, by the holder */

    :: atomic { role[i] == PRIMARY && w_holder != i && w_epoch >= epoch[i] -> die(i) }   /* Denied: fenced */

    /* output leaves: everything up to the watermark may be depended on */
    :: atomic { FREE_TO_COMMIT(i) && (lease[i] || LEASE_IGNORED) && log[i].size >= epoch_size[i] ->
        mark = 0;
        if
        :: counts[i] -> mark = acked[i]
#ifdef WATERMARK_NOT_FROZEN
        :: !counts[i] && alone[i] -> mark = log[i].size
#else
        :: !counts[i] && alone[i] && !joining[i] -> mark = log[i].size
#endif
        :: !counts[i] && (joining[i] || !alone[i]) -> skip
#ifdef OUTPUT_BEFORE_ACKNOWLEDGEMENT
        :: counts[i] -> mark = log[i].size
#endif
        fi;
        if
        :: mark >= epoch_size[i] && mark > 0 ->
            /* G7: nobody else emits in this instant */
            assert(!EMITS(other));
            k = 0;
            do
            :: k < mark ->
                assert(k >= out_size || (out_epoch[k] == log[i].epoch[k] && out_value[k] == log[i].value[k]));
                out_epoch[k] = log[i].epoch[k]; out_value[k] = log[i].value[k];
                k++
            :: else -> break
            od;
            if :: mark > out_size -> out_size = mark :: else fi
        :: else
        fi;
        k = 0; mark = 0 }

    /* -- backup -- */

    :: atomic { role[i] == BACKUP && !up && role[other] == PRIMARY && epoch[other] >= epoch[i] ->      /* Hello, Welcome */
        k = 0;
        do
        :: k < log[i].size && k < log[other].size && log[i].epoch[k] == log[other].epoch[k] ->
            assert(log[i].value[k] == log[other].value[k]);      /* G4: one epoch, one history */
            k++
        :: else -> break
        od;
        if
        :: k < log[i].size ->                                    /* Rewind: never below what was committed (G8) */
            mark = k;
            do
            :: mark < log[i].size ->
                assert(mark >= out_size || out_value[mark] != log[i].value[mark]);
                mark++
            :: else -> break
            od;
            mark = 0;
            log[i].size = k
        :: else
        fi;
        up = true; sent[other] = k; acked[other] = k; counts[other] = false; joining[other] = false;
        epoch[i] = epoch[other]; in_sync[i] = false;
        k = 0 }

    :: atomic { role[i] == BACKUP && up && nempty(records) && nfull(acks) ->
        records?k,e,v;
        assert(k == log[i].size);                                /* no gap */
        log[i].epoch[k] = e; log[i].value[k] = v; log[i].size = k + 1;
        acks!log[i].size;
        k = 0; e = 0; v = 0 }

    :: atomic { role[i] == BACKUP && up && nempty(syncs) && empty(records) -> syncs?e; in_sync[i] = true; sync_epoch[i] = e; e = 0 }

#ifdef TAKES_OVER_OUT_OF_SYNC
    :: atomic { role[i] == BACKUP && !up -> sync_epoch[i] = w_epoch; role[i] = CLAIMING }
#else
    :: atomic { role[i] == BACKUP && !up && in_sync[i] -> role[i] = CLAIMING }
#endif
    :: atomic { role[i] == BACKUP && up && in_sync[i] -> cut(); role[i] = CLAIMING }   /* SILENT: it only seems dead */

    :: atomic { role[i] == CLAIMING && log[i].size < RECORDS && (epoch[i] / TERM + 2) * TERM <= EPOCHS_MAX ->
        e = (epoch[i] / TERM + 1) * TERM;
        if
#ifdef TAKES_OVER_WITHOUT_GRANT
        :: granted[i] = e; lease[i] = true; lead(i, e)
#endif
#ifdef LEASE_TAKEN_WITHOUT_WAITING
        :: w_epoch == sync_epoch[i] ->
#else
        :: w_epoch == sync_epoch[i] && !lease[w_holder] ->
#endif
            w_epoch = e; w_holder = i; lease[i] = true; granted[i] = e; lead(i, e)
#ifdef CLAIM_OF_ANY_EPOCH
        :: w_epoch < e && !lease[w_holder] -> w_epoch = e; w_holder = i; lease[i] = true; granted[i] = e; lead(i, e)
#endif
        :: w_epoch != sync_epoch[i] -> role[i] = BACKUP; in_sync[i] = false        /* DENIED */
        :: else -> role[i] = CLAIMING
        fi;
        e = 0 }

    /* -- launches, by an operator -- */

    :: atomic { role[i] == DEAD -> role[i] = BACKUP; epoch[i] = (log[i].size > 0 -> log[i].epoch[log[i].size - 1] : 0);
        in_sync[i] = false; counts[i] = false }

    :: atomic { role[i] == DEAD && role[other] < PRIMARY && log[i].size > 0 && log[i].size < RECORDS &&
        led[i] == log[i].epoch[log[i].size - 1] && w_holder == i && w_epoch == led[i] && !lease[i] && (led[i] + 1) % TERM != 0 ->
        w_epoch = led[i] + 1; lease[i] = true; granted[i] = w_epoch; lead(i, w_epoch) }
    od
}

proctype world() {
    do
    :: atomic { breaks < BREAKS && up -> breaks++; cut() }
    :: atomic { deaths < DEATHS && role[0] != DEAD -> deaths++; die(0) }
    :: atomic { deaths < DEATHS && role[1] != DEAD -> deaths++; die(1) }
    :: atomic { lease[w_holder] -> lease[w_holder] = false }                      /* it was not renewed in time */
    :: atomic { !lease[w_holder] && role[w_holder] == PRIMARY && granted[w_holder] == w_epoch && w_epoch == epoch[w_holder] ->
        lease[w_holder] = true }                                                  /* renewed: nobody else took it */
    od
}

init {
    atomic {
        w_epoch = TERM; w_holder = 0; lease[0] = true;
        role[1] = BACKUP;
        role[0] = PRIMARY; epoch[0] = TERM; led[0] = TERM; granted[0] = TERM; append(0, TERM); epoch_size[0] = 1;
        alone[0] = true;
        run node(0); run node(1); run world()
    }
}
