/* The ledger's protocol for one fingerprint: two runs and a `reconcile`, in every order that their steps can have.

   disk[k] are the files of attempt k, each created once: k-reserved, k-released, k-submitted, k-settled.
   A process works by its own reading of them, which may be old. fal[r] is the truth about request r.
   Stopping is possible before any step: a crash, a kill and running out of patience are the same `goto stop`. */

#ifndef STARTS
#define STARTS 2        /* how often a run is started, over both of its places */
#endif
#ifndef PROOF
#define PROOF 3         /* so many like answers prove that a request ended without a picture */
#endif
#define FAULT 2         /* so many like answers in a row a passing fault can imitate */
#define MAX_ATTEMPTS 2  /* submits of one fingerprint that may have reached fal */
#define ATTEMPTS 4
#define REQUESTS 3
#define RESTORES 1
#define GIVE_UPS 1

mtype = { queued, picture, failed };                    /* a request at fal */
mtype = { generated, again, final };                    /* how an attempt was settled; `again` may be retried */
typedef Attempt { bit reserved; bit released; byte submitted; mtype settled };

Attempt disk[ATTEMPTS + 1];     /* attempt 0 is never used */
byte owner[ATTEMPTS + 1];       /* the live process that reserved it, or 0 */
mtype fal[REQUESTS + 1];
byte requests, starts, working, restores, give_ups;

#define HELD(r)     (fal[r] == queued || fal[r] == picture)     /* fal has its picture, or may yet */
#define FREE        (!n || view[n].released || (view[n].settled == again && paid < MAX_ATTEMPTS))
#define OPEN        (n && !view[n].released && !view[n].settled)
#define UNANSWERED  (OPEN && !view[n].submitted)
#define KNOWN(r)    (view[1].submitted == r || view[2].submitted == r || view[3].submitted == r || view[4].submitted == r)

#ifdef OVERWRITE
#define ONCE(absent) true       /* planted: a file that is there is written again */
#else
#define ONCE(absent) (absent)
#endif
#ifdef SETTLE_LAST
#define ASKED_FOR n             /* planted: whatever attempt is the last by now is settled */
#else
#define ASKED_FOR k             /* the attempt whose request was asked about */
#endif

inline look() {                 /* read the files; n is the last attempt */
  d_step {
    n = 0; paid = 0; i = 1;
    do
    :: i <= ATTEMPTS ->
       view[i].reserved = disk[i].reserved; view[i].released = disk[i].released;
       view[i].submitted = disk[i].submitted; view[i].settled = disk[i].settled;
       if :: disk[i].reserved -> n = i; paid = paid + 1 - disk[i].released :: else fi;
       i++
    :: else -> break
    od;
    i = 0
  }
}

inline leave() {                /* the process is gone, with all that it knew */
  d_step {
    working--; n = 0; paid = 0; k = 0; r = 0; i = 1;
    do
    :: i <= ATTEMPTS ->
       view[i].reserved = 0; view[i].released = 0; view[i].submitted = 0; view[i].settled = 0;
       if :: owner[i] == _pid + 1 -> owner[i] = 0 :: else fi;
       i++
    :: else -> break
    od;
    i = 0
  }
}

inline ends(r) { if :: fal[r] == queued -> fal[r] = picture :: fal[r] == queued -> fal[r] = failed :: true fi }

inline settle(a, how) {
  atomic {
    if
    :: ONCE(!disk[a].settled) ->
       assert(how != generated || fal[disk[a].submitted] == picture);
       assert(how == generated || fal[disk[a].submitted] == failed);    /* nothing that fal holds is given up */
       disk[a].settled = how; view[a].settled = how
    :: else -> look()
    fi
  }
}

inline attach(a, request) {
  atomic {
    if
    :: ONCE(!disk[a].submitted) -> disk[a].submitted = request; view[a].submitted = request
    :: else -> look()
    fi
  }
}

inline search() {               /* an unanswered submit, in fal's list; only of a run that is gone */
#ifndef SEARCH_ALIVE
  atomic {                      /* what it left is read again, and must be what it was when its run was found gone */
    if
    :: !owner[n] || owner[n] == _pid + 1 -> k = n; look(); if :: k == n -> k = 0 :: else -> goto stop fi
    :: else -> goto stop
    fi
  };
#endif
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

inline accepted() {             /* fal takes the POST: from here on it costs money */
  d_step {
    requests++; fal[requests] = queued; r = requests; i = 1;
    do
    :: i < requests -> assert(!HELD(i) || give_ups); i++        /* paid at most once, unless a person chose otherwise */
    :: else -> break
    od;
    i = 0
  }
}

inline reserve() {
  atomic {
    if
    :: n < ATTEMPTS && ONCE(!disk[n + 1].reserved) ->
       n++; paid++; disk[n].reserved = 1; view[n].reserved = 1; owner[n] = _pid + 1
    :: else -> goto stop        /* another run was first */
    fi
  }
}

inline submit() {
#ifdef POST_FIRST               /* planted: the intent is written after the POST */
  if :: requests < REQUESTS -> accepted(); reserve(); attach(n, r); r = 0 :: goto stop fi
#else
  reserve();
  if
  :: requests < REQUESTS -> accepted();
     if
     :: true -> attach(n, r)
     :: true                    /* its answer is lost, or a 5xx that may lie */
#ifdef RELEASE_ON_5XX
     :: atomic { disk[n].released = 1; view[n].released = 1; paid-- }   /* planted: a 5xx is believed */
#endif
     fi;
     r = 0
  :: true                       /* lost on its way: looks the same from here */
  :: atomic { disk[n].released = 1; view[n].released = 1; paid-- }      /* a 4xx, or no connection */
  :: goto stop
  fi
#endif
}

inline fetch() {
  k = n;
  do
  :: atomic { fal[view[k].submitted] == queued -> ends(view[k].submitted) }
  :: fal[view[k].submitted] == picture -> settle(k, generated); break
  :: fal[view[k].submitted] == failed || PROOF <= FAULT ->
     if :: true -> settle(ASKED_FOR, again) :: true -> settle(ASKED_FOR, final) fi; break
  :: atomic { fal[view[k].submitted] == queued -> fal[view[k].submitted] = failed };   /* cancelled; the OK may be lost */
     if :: true -> settle(ASKED_FOR, again) :: true fi
  :: goto stop
  od;
  k = 0
}

inline adopt() {                /* enter all that fal lists and no file names, also what ended without a picture */
  look(); r = 1;
  do
  :: r <= requests && !KNOWN(r) && n < ATTEMPTS ->
     ends(r);
#ifdef ADOPT_HELD_ONLY
     if :: fal[r] == failed -> r++; goto next :: else fi;
#endif
     if
     :: OPEN && view[n].submitted ->    /* an earlier request, which fal lists as ended */
        if :: fal[view[n].submitted] == queued -> fal[view[n].submitted] = failed :: else fi;
        assert(fal[view[n].submitted] == failed || give_ups);
        disk[n].settled = again; n++
     :: UNANSWERED
     :: !OPEN -> n++
     fi;
     disk[n].reserved = 1; disk[n].submitted = r;
     if :: fal[r] == failed -> disk[n].settled = again :: else fi;
     look(); r++;
next: skip
  :: r <= requests && KNOWN(r) -> r++
  :: r > requests || (!KNOWN(r) && n == ATTEMPTS) -> break
  od;
  r = 0
}

inline restore() {              /* the files are what they were at some earlier moment */
  working++; i = ATTEMPTS;
  do
  :: i -> disk[i].settled = 0;
     if
     :: true -> disk[i].released = 0; disk[i].submitted = 0; if :: true -> disk[i].reserved = 0; i-- :: true -> break fi
     :: true -> break
     fi
  :: true -> break
  od;
  i = 0;
#ifndef NO_ADOPT
  adopt();
#endif
  leave()
}

active [2] proctype Run() {
  Attempt view[ATTEMPTS + 1];
  byte n, paid, i, k, r;
  do
  :: atomic { starts < STARTS -> starts++; working++; look() };
     do
     :: FREE -> submit()
     :: OPEN && view[n].submitted -> fetch()
     :: UNANSWERED -> search(); if :: UNANSWERED -> goto stop :: else fi
     :: !FREE && !OPEN -> goto stop
     :: goto stop
     od;
stop:
     leave()
  :: atomic { restores < RESTORES && !working -> restores++; restore() }
  :: starts == STARTS -> break
  od
}

#ifndef RUNS_ONLY
active proctype Reconcile() {
  Attempt view[ATTEMPTS + 1];
  byte n, paid, i, k, r;
  atomic { working++; look() };
  if
  :: UNANSWERED -> search()
  :: UNANSWERED && give_ups < GIVE_UPS ->
     atomic { if :: !disk[n].settled && !owner[n] -> give_ups++; disk[n].settled = again :: else fi }
  :: else
  fi;
stop:
  leave()
}
#endif
