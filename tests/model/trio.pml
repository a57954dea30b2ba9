/* Two backups and the witness, for spin: is there an order of events in which a guarantee breaks?

   What pair.pml leaves out: the sync set, that is who may take over; a lost backup that is left out by a new epoch; what a
   claim is good for; a node that joins when another is lost. What the code calls by the same name is in
   actornet/replication: primary.py (_sync_set, _begin_epoch, _ask_witness, count, lost), backup.py (sync_epochs), lease.py.
   N0 leads, N1 and N2 are in sync. The policy is `wait`: the last backup that is lost stays in the sync set.

   What pair.pml has and is left out here: nodes that return, and the lease's end as a step of its own. A claim may be granted
   at any time; the old holder has stopped emitting by then, which is what `w_holder` says. A record is received and acknowledged
   as it is sent: who does so later might as well have done it now, as nobody sees the difference before that node's next step.
   A record is its epoch, as no two nodes lead one epoch.

   Each planted bug is a macro: tests/test_model.py has spin find all of them. */

#ifndef RECORDS
#define RECORDS 5          /* length of a log */
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef BREAKS
#define BREAKS 2           /* connections that break, or seem to */
#endif
#define TERM 4             /* epochs of one term */
#define EPOCHS 13          /* 0 to 12 */
#define NODES 3
#define NONE 3

#define DEAD 0
#define BACKUP 1
#define CLAIMING 2
#define PRIMARY 3

#define F(p, b) ((p) * NODES + (b))      /* the primary's side of a connection */
#define L(i, k) ((i) * RECORDS + (k))
#define BIT(b) (1 << (b))

/* what a node's disk keeps */
byte log[NODES * RECORDS];
byte size[NODES];

/* what a process has */
byte role[NODES];
byte epoch[NODES];         /* of a primary: its own; of a backup: the highest that it heard of */
byte granted[NODES];       /* the epoch that the witness granted it */
byte epoch_size[NODES];    /* commits begin with this many records: the epoch's own is among them */
bool alone[NODES];         /* primary: commits_alone, after a takeover and until one counts */
byte sync_set[NODES];      /* primary: a bit for each node that may take over from its epoch */

/* what a primary knows of a backup */
bool up[NODES * NODES];
bool counts[NODES * NODES];
byte join_size[NODES * NODES];           /* it joins: the watermark waits here; 0: it does not */
byte acked[NODES * NODES];
byte heard[NODES * NODES];               /* the epoch that it has shown to know */

/* what a backup has */
byte from[NODES];          /* whom it is connected to, as it sees it */
byte sync_first[NODES], sync_last[NODES];    /* the epochs in which it was told Sync; 0: it may not take over */

/* Syncs on their way to a backup: their epochs, and the size of its log when they have come */
#define SYNCS 3
typedef Syncs { byte count; byte epoch[SYNCS]; byte at[SYNCS] }
Syncs syncs[NODES];

/* the witness */
byte w_epoch, w_holder;

/* what was seen outside: the records that an emitted output depended on */
byte out[RECORDS], out_size;
byte deaths, breaks;

#define COUNTING(p) (counts[F(p, 0)] * 1 + counts[F(p, 1)] * 2 + counts[F(p, 2)] * 4)
#define MAY_CLAIM(b) (sync_first[b] <= w_epoch && w_epoch <= sync_last[b])
#define HEARD(p, b) (!counts[F(p, b)] || heard[F(p, b)] >= epoch[p])
#define MAY_BEGIN(p) (size[p] < RECORDS && (epoch[p] + 1) % TERM != 0)

/* G6: whoever counts could be granted the lease right now, if it were to take over. */
#define SUCCEEDS(p, b) (!(counts[F(p, b)] && sync_last[b] && role[b] == BACKUP && from[b] == p) || MAY_CLAIM(b))

#ifdef ASKS_BEFORE_ALL_HAVE_HEARD
#define ALL_HAVE_HEARD(p) true
#else
#define ALL_HAVE_HEARD(p) (HEARD(p, 0) && HEARD(p, 1) && HEARD(p, 2))
#endif

#ifdef COMMITS_BEFORE_THE_GRANT
#define MAY_COMMIT(p) true
#else
#define MAY_COMMIT(p) (granted[p] == epoch[p])
#endif

#ifdef CLAIM_OF_ANY_EPOCH
#define GOOD(b) true
#else
#ifdef CLAIM_AFTER_A_DEAD_WINNER        /* which may have committed alone, in an epoch that it was granted */
#define GOOD(b) (MAY_CLAIM(b) || role[w_holder] == DEAD)
#else
#define GOOD(b) MAY_CLAIM(b)
#endif
#endif
#define WANTED(b) (((epoch[b] < w_epoch -> w_epoch : epoch[b]) / TERM + 1) * TERM)

inline append(i, e) {
    assert(size[i] < RECORDS);
    log[L(i, size[i])] = e;
    size[i]++
}

inline unlink(p, b) {
    up[F(p, b)] = false; counts[F(p, b)] = false;
    join_size[F(p, b)] = 0; acked[F(p, b)] = 0; heard[F(p, b)] = 0
}

inline leave(b) {
    from[b] = NONE;
    do :: syncs[b].count > 0 -> syncs[b].count--; syncs[b].epoch[syncs[b].count] = 0; syncs[b].at[syncs[b].count] = 0 :: else -> break od
}

inline tell(p, b, e, at_size) {
    if
    :: from[b] == p && up[F(p, b)] ->
        assert(syncs[b].count < SYNCS);
        syncs[b].epoch[syncs[b].count] = e; syncs[b].at[syncs[b].count] = at_size;
        syncs[b].count++
    :: else                                             /* its connection is broken already */
    fi
}

inline tell_counting(p, b) {
    if :: counts[F(p, b)] -> tell(p, b, epoch[p], size[p] - 1) :: else fi
}

/* Go on without those that are lost: logged, those that remain are told, and the witness is asked when they have heard. */
inline begin_epoch(p) {
    sync_set[p] = COUNTING(p);
#ifndef LEFT_OUT_IN_THE_SAME_EPOCH
    epoch[p]++;
    append(p, epoch[p]);
    epoch_size[p] = size[p];
    tell_counting(p, 1); tell_counting(p, 2);
#endif
    alone[p] = false
}

inline lead(i, e) {
    k = 0;                                              /* G3, G6: it has all that anything outside depends on */
    do
    :: k < out_size -> assert(k < size[i] && log[L(i, k)] == out[k]); k++
    :: else -> break
    od;
    k = 0;
    role[i] = PRIMARY; epoch[i] = e; granted[i] = e; alone[i] = true; sync_set[i] = 0;
    sync_first[i] = 0; sync_last[i] = 0;
    append(i, e);
    epoch_size[i] = size[i]
}

/* A node that is gone has nothing that anybody could ask for any more. */
inline die(i) {
    role[i] = DEAD; granted[i] = 0; alone[i] = false; sync_set[i] = 0; epoch_size[i] = 0; epoch[i] = 0;
    unlink(i, 0); unlink(i, 1); unlink(i, 2);
    sync_first[i] = 0; sync_last[i] = 0;
    do :: size[i] > 0 -> size[i]--; log[L(i, size[i])] = 0 :: else -> break od
}

/* -- a primary and one backup -- */

proctype feed(byte p, b) {
    byte k;
    do
    :: atomic { role[b] == BACKUP && from[b] == NONE && role[p] == PRIMARY && !up[F(p, b)] && epoch[p] >= epoch[b] ->  /* Hello */
        k = 0;
        do
        :: k < size[b] && k < size[p] && log[L(b, k)] == log[L(p, k)] -> k++
        :: else -> break
        od;
        do                                              /* Rewind: never below what was committed (G8) */
        :: size[b] > k ->
            size[b]--;
            assert(size[b] >= out_size || out[size[b]] != log[L(b, size[b])]);
            log[L(b, size[b])] = 0
        :: else -> break
        od;
        up[F(p, b)] = true; acked[F(p, b)] = k; heard[F(p, b)] = epoch[p];
        from[b] = p; epoch[b] = epoch[p]; sync_first[b] = 0; sync_last[b] = 0;
        k = 0 }

    :: atomic { role[b] == BACKUP && from[b] == NONE && role[p] == PRIMARY && epoch[p] < epoch[b] -> die(p) }  /* fenced */

    :: atomic { role[p] == PRIMARY && up[F(p, b)] && from[b] == p && size[b] < size[p] &&
        (syncs[b].count == 0 || size[b] < syncs[b].at[0]) ->                          /* Records, Ack */
        log[L(b, size[b])] = log[L(p, size[b])];
        if :: epoch[b] < log[L(p, size[b])] -> epoch[b] = log[L(p, size[b])] :: else fi;
        size[b]++;
        acked[F(p, b)] = size[b]; heard[F(p, b)] = epoch[b] }

    :: atomic { role[p] == PRIMARY && up[F(p, b)] && from[b] == p && syncs[b].count > 0 && size[b] == syncs[b].at[0] ->  /* Sync, Ack */
        if
        :: sync_first[b] == 0 -> sync_first[b] = syncs[b].epoch[0]
        :: else
        fi;
        sync_last[b] = syncs[b].epoch[0]; epoch[b] = syncs[b].epoch[0];
        syncs[b].epoch[0] = syncs[b].epoch[1]; syncs[b].epoch[1] = syncs[b].epoch[2]; syncs[b].epoch[2] = 0;
        syncs[b].at[0] = syncs[b].at[1]; syncs[b].at[1] = syncs[b].at[2]; syncs[b].at[2] = 0;
        syncs[b].count--;
        heard[F(p, b)] = epoch[b] }

    :: atomic { role[p] == PRIMARY && up[F(p, b)] && from[b] == p && !counts[F(p, b)] && !join_size[F(p, b)] &&
        size[b] == size[p] -> join_size[F(p, b)] = size[p] }                          /* ALL_SENT */

    :: atomic { role[p] == PRIMARY && up[F(p, b)] && join_size[F(p, b)] && granted[p] == epoch[p] &&
        (sync_set[p] == COUNTING(p) || (sync_set[p] | BIT(b)) == (COUNTING(p) | BIT(b)) || MAY_BEGIN(p)) ->  /* LAG_0 */
        join_size[F(p, b)] = 0; counts[F(p, b)] = true; alone[p] = false;
        sync_set[p] = sync_set[p] | BIT(b);
        tell(p, b, epoch[p], size[p]);
        if
        :: sync_set[p] != COUNTING(p) ->                /* who is lost is left out, now that another can take over */
#ifdef LOST_ONE_IS_FORGOTTEN
            sync_set[p] = COUNTING(p)
#else
            begin_epoch(p)
#endif
        :: else
        fi }

    :: atomic { role[p] == PRIMARY && up[F(p, b)] && from[b] != p &&
        (!counts[F(p, b)] || COUNTING(p) == BIT(b) || MAY_BEGIN(p)) ->                /* LOST */
        if
        :: !counts[F(p, b)] || COUNTING(p) == BIT(b) -> unlink(p, b)                  /* the last: waits, without committing */
        :: else -> unlink(p, b); begin_epoch(p)
        fi }

    :: atomic { breaks < BREAKS && from[b] == p && role[p] == PRIMARY && up[F(p, b)] -> breaks++; leave(b) }  /* b sees it first */

    :: atomic { breaks < BREAKS && from[b] == p && role[p] == PRIMARY && up[F(p, b)] && counts[F(p, b)] &&
        COUNTING(p) != BIT(b) && MAY_BEGIN(p) -> breaks++; unlink(p, b); begin_epoch(p) }     /* or the primary does */

    :: atomic { from[b] == p && (role[p] != PRIMARY || !up[F(p, b)]) -> leave(b) }    /* the connection was closed */
    od
}

/* -- a node by itself -- */

proctype node(byte i) {
    byte k, mark;
    do
    :: atomic { role[i] == PRIMARY && size[i] < RECORDS -> append(i, epoch[i]) }      /* a core asks */

    :: atomic { role[i] == PRIMARY && granted[i] != epoch[i] && w_holder == i && w_epoch < epoch[i] && ALL_HAVE_HEARD(i) ->
        w_epoch = epoch[i]; granted[i] = epoch[i];                                    /* Swap, by the holder */
        assert(SUCCEEDS(i, 0) && SUCCEEDS(i, 1) && SUCCEEDS(i, 2)) }

    :: atomic { role[i] == PRIMARY && w_holder != i -> die(i) }                       /* Denied: fenced */

    /* output leaves: everything up to the watermark may be depended on */
    :: atomic { role[i] == PRIMARY && w_holder == i && MAY_COMMIT(i) &&
        (alone[i] || (sync_set[i] != 0 && sync_set[i] == COUNTING(i))) ->
        mark = size[i];
        k = 0;
        do
        :: k < NODES ->
            if
            :: counts[F(i, k)] && acked[F(i, k)] < mark -> mark = acked[F(i, k)]
            :: join_size[F(i, k)] && join_size[F(i, k)] < mark -> mark = join_size[F(i, k)]
            :: else
            fi;
            k++
        :: else -> break
        od;
#ifdef ONE_ACKNOWLEDGEMENT_IS_ENOUGH
        k = 0;
        do
        :: k < NODES -> if :: counts[F(i, k)] && acked[F(i, k)] > mark -> mark = acked[F(i, k)] :: else fi; k++
        :: else -> break
        od;
#endif
        assert(SUCCEEDS(i, 0) && SUCCEEDS(i, 1) && SUCCEEDS(i, 2));
        if
        :: mark >= epoch_size[i] ->
            k = 0;
            do
            :: k < mark -> assert(k >= out_size || out[k] == log[L(i, k)]); out[k] = log[L(i, k)]; k++
            :: else -> break
            od;
            if :: mark > out_size -> out_size = mark :: else fi
        :: else
        fi;
        k = 0; mark = 0 }

    :: atomic { role[i] == BACKUP && from[i] == NONE && sync_last[i] -> role[i] = CLAIMING }  /* LOST, SILENT */

    :: atomic { role[i] == CLAIMING && GOOD(i) && size[i] < RECORDS && WANTED(i) < EPOCHS ->
        mark = WANTED(i);
        w_epoch = mark; w_holder = i;                             /* Swap: the witness's test-and-set */
        lead(i, mark);
        mark = 0 }

    :: atomic { role[i] == CLAIMING && !MAY_CLAIM(i) ->            /* DENIED */
        role[i] = BACKUP; sync_first[i] = 0; sync_last[i] = 0;
        if :: epoch[i] < w_epoch -> epoch[i] = w_epoch :: else fi }

    :: atomic { role[i] == CLAIMING && w_holder != i && role[w_holder] == PRIMARY && epoch[w_holder] >= epoch[i] ->
        role[i] = BACKUP }                                        /* a primary that lives welcomes it */

    :: atomic { deaths < DEATHS && role[i] != DEAD -> deaths++; die(i); leave(i) }
    od
}

init {
    byte i;
    atomic {
        w_epoch = TERM; w_holder = 0;
        role[0] = PRIMARY; epoch[0] = TERM; granted[0] = TERM; from[0] = NONE;
        append(0, TERM); epoch_size[0] = 1; sync_set[0] = BIT(1) | BIT(2);
        for (i : 1 .. NODES - 1) {
            role[i] = BACKUP; epoch[i] = TERM; log[L(i, 0)] = TERM; size[i] = 1;
            from[i] = 0; sync_first[i] = TERM; sync_last[i] = TERM;
            up[F(0, i)] = true; counts[F(0, i)] = true; acked[F(0, i)] = 1; heard[F(0, i)] = TERM
        }
        i = 0;
        run node(0); run node(1); run node(2);
        run feed(0, 1); run feed(0, 2); run feed(1, 2); run feed(2, 1)
    }
}
