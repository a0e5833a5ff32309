/* The ledger's protocol for one fingerprint: runs in two places and a `reconcile`, in every order of their steps.

   file[k] is what attempt k's files say, of which each is created once, and sent[k] the request that they name.
   A process works by its own reading of them, which may be old: seen[k] and req[k]. fal[r] is the truth of request r.
   Stopping is possible before any step: a crash, a kill and running out of patience are the same `goto stop`.

   STARTS says how often a run is started, over both of its places, and RECONCILES how many `reconcile` there are. */

#define PROOF 3         /* so many like answers prove that a request ended without a picture */
#define FAULT 2         /* so many like answers in a row a passing fault can imitate */
#define MAX_ATTEMPTS 2  /* submits of one fingerprint that may have reached fal */
#define ATTEMPTS 4
#define REQUESTS 3

mtype = { queued, picture, failed };                        /* a request at fal */
mtype = { reserved, released, generated, again, final };    /* an attempt; `again` may be retried */

mtype file[ATTEMPTS + 1], fal[REQUESTS + 1];
byte sent[ATTEMPTS + 1], owner[ATTEMPTS + 1];               /* the live process that reserved it, or 0 */
byte requests, starts, working, restores, give_ups;

#define HELD(r)         (fal[r] == queued || fal[r] == picture)     /* fal has its picture, or may yet */
#define FREE            (!n || seen[n] == released || (seen[n] == again && paid < MAX_ATTEMPTS))
#define OPEN            (seen[n] == reserved)
#define UNANSWERED      (OPEN && !req[n])
#define KNOWN(r)        (req[1] == r || req[2] == r || req[3] == r || req[4] == r)
#define ONCE(absent)    (absent)

inline look(alive) {            /* read the files; n is the last attempt. Who is gone knows and owns nothing */
  d_step {
    n = 0; paid = 0; i = 1;
    do
    :: i <= ATTEMPTS && alive -> seen[i] = file[i]; req[i] = sent[i];
       if :: file[i] -> n = i; paid = paid + (file[i] != released) :: else fi; i++
    :: i <= ATTEMPTS && !alive -> seen[i] = 0; req[i] = 0; if :: owner[i] == _pid + 1 -> owner[i] = 0 :: else fi; i++
    :: else -> break
    od;
    i = 0
  }
}

inline ends(r) { if :: fal[r] == queued -> fal[r] = picture :: fal[r] == queued -> fal[r] = failed :: true fi }

inline settle(a, how) {
  atomic {
    if
    :: ONCE(file[a] == reserved) ->
       assert(how != generated || fal[sent[a]] == picture);
       assert(how == generated || fal[sent[a]] == failed);          /* nothing that fal holds is given up */
       file[a] = how; seen[a] = how
    :: else -> look(1)
    fi
  }
}

inline attach(a, request) { atomic { if :: ONCE(!sent[a]) -> sent[a] = request; req[a] = request :: else -> look(1) fi } }

inline release() { atomic { file[n] = released; seen[n] = released; paid-- } }

inline search() {               /* an unanswered submit, in fal's list; only of a run that is gone */
  atomic {                      /* what it left is read again, and must be what it was when its run was found gone */
    if
    :: !owner[n] || owner[n] == _pid + 1 -> k = n; look(1); if :: k == n -> k = 0 :: else -> goto stop fi
    :: else -> goto stop
    fi
  };
  if
  :: UNANSWERED ->
     atomic {                   /* only one that no file names counts; the list may lag, so any of them may be the one */
       if
       :: requests >= 1 && !KNOWN(1) -> r = 1
       :: requests >= 2 && !KNOWN(2) -> r = 2
       :: requests >= 3 && !KNOWN(3) -> r = 3
       :: true
       fi;
       if :: r -> attach(n, r) :: else fi;
       r = 0
     }
  :: else
  fi
}

inline reserve() {
  atomic {
    if
    :: n < ATTEMPTS && ONCE(!file[n + 1]) -> n++; paid++; file[n] = reserved; seen[n] = reserved; owner[n] = _pid + 1
    :: else -> goto stop        /* another run was first */
    fi
  }
}

inline post() {                 /* fal takes the POST: from here on it costs money */
  d_step {
    requests++; fal[requests] = queued; r = requests; i = 1;
    do
    :: i < requests -> assert(!HELD(i) || give_ups); i++            /* paid at most once, unless a person chose otherwise */
    :: else -> break
    od;
    i = 0
  }
}

inline submit() {
  reserve();
  if
  :: requests < REQUESTS -> post();
     if
     :: true -> attach(n, r)
     :: true -> skip            /* its answer is lost, or a 5xx that may lie */
     fi;
     r = 0
  :: true                       /* lost on its way: looks the same from here */
  :: true -> release()          /* a 4xx, or no connection */
  :: goto stop
  fi
}

inline fetch() {
  k = n;
  do
  :: atomic { fal[req[k]] == queued -> ends(req[k]) }
  :: fal[req[k]] == picture -> settle(k, generated); break
  :: fal[req[k]] == failed || PROOF <= FAULT -> if :: true -> settle(k, again) :: true -> settle(k, final) fi; break
  :: atomic { fal[req[k]] == queued -> fal[req[k]] = failed };        /* cancelled; the OK may be lost */
     if :: true -> settle(k, again) :: true fi
  :: goto stop
  od;
  k = 0
}

inline adopt() {                /* enter all that fal lists and no file names, also what ended without a picture */
  look(1); r = 1;
  do
  :: r <= requests && !KNOWN(r) && n < ATTEMPTS ->
     ends(r);
     if
     :: OPEN && req[n] ->        /* an earlier request, which fal lists as ended */
        if :: fal[req[n]] == queued -> fal[req[n]] = failed :: else fi;
        assert(fal[req[n]] == failed || give_ups);
        file[n] = again; n++
     :: UNANSWERED
     :: !OPEN -> n++
     fi;
     sent[n] = r; if :: fal[r] == failed -> file[n] = again :: else -> file[n] = reserved fi;
     look(1); r++
  :: r <= requests && KNOWN(r) -> r++
  :: r > requests || (!KNOWN(r) && n == ATTEMPTS) -> break
  od;
  r = 0
}

inline restore() {              /* the files are what they were at some earlier moment */
  i = ATTEMPTS;
  do
  :: i -> if :: file[i] && file[i] != released -> file[i] = reserved :: else fi;
     if :: true -> sent[i] = 0; if :: file[i] -> file[i] = reserved :: else fi :: true -> break fi;
     if :: true -> file[i] = 0; i-- :: true -> break fi
  :: true -> break
  od;
  i = 0
}

active [2] proctype Run() {
  mtype seen[ATTEMPTS + 1];
  byte req[ATTEMPTS + 1], n, paid, i, k, r;
  do
  :: atomic { starts < STARTS -> starts++; working++; look(1) };
     do
     :: FREE -> submit()
     :: OPEN && req[n] -> fetch()
     :: UNANSWERED -> search(); if :: UNANSWERED -> goto stop :: else fi
     :: !FREE && !OPEN -> goto stop
     :: goto stop
     od;
stop:
     atomic { working--; k = 0; r = 0; look(0) }
  :: atomic { !restores && !working -> restores++; restore(); adopt(); look(0) }
  :: starts == STARTS -> break
  od
}

active [RECONCILES] proctype Reconcile() {
  mtype seen[ATTEMPTS + 1];
  byte req[ATTEMPTS + 1], n, paid, i, k, r;
  atomic { working++; look(1) };
  if
  :: UNANSWERED -> search()
  :: atomic { UNANSWERED && file[n] == reserved && !owner[n] -> give_ups++; file[n] = again }
  :: else
  fi;
stop:
  atomic { working--; k = 0; r = 0; look(0) }
}
