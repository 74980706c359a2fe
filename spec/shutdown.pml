/*
 * A submit and a cancel against everything that can end an engine: a load that fails or hangs, a step that fails,
 * hangs or comes back late, a fault of the loop, a drain, a stop, and the watchdog. With TWO_ABANDON an open stream
 * abandons the engine too, at its next ping; with COMPANY there are two sequences; with LEAVER the process goes and ends
 * everyone from outside. To stay small these have no drain, and COMPANY has no cancel.
 *
 * Proved: a sequence that was accepted is closed once and has one outcome, and both do come. The process is replaced
 * only when no stream is open. A stop and a drain are heard without a tick.
 *
 * Faults, each at any moment: an exception in a step; one in the loop, also between taking a sequence out of the inbox
 * and giving it to the scheduler, also while everyone is being ended; a step or a load that comes back late or never.
 *
 * Left out: slots, tokens and texts; deadlines (one more reason to finish); `max_streams`; the polling of
 * `should_drain`, which needs the tick by design; what `os._exit` cuts. Between taking a sequence out of `_open` and
 * closing it nothing fails or blocks. A limit may be over at any time. What the engine's lock guards is one step, and
 * so is a wake-up.
 */

#define NUM_WAITERS 1
#define WHOLE_WAKE_UPS
#include "wakeup.pml"

#ifdef COMPANY
#define NUM_CLIENTS 2
#else
#define NUM_CLIENTS 1
#define HAS_CANCEL
#if !defined(TWO_ABANDON) && !defined(LEAVER)
#define HAS_DRAIN
#endif
#endif
#define LAST (NUM_CLIENTS - 1)

mtype = { LOADING, READY, DRAINING, DEAD };

/* worker/engine/admission.py: Admission.__init__
   worker/engine/supervisor.py: Supervisor.__init__ */
mtype state = LOADING;
bool is_accepting;
chan inbox = [NUM_CLIENTS] of { byte };
bool is_open[NUM_CLIENTS];
bool is_cancelled[NUM_CLIENTS];
bool is_stopping, is_drain_asked, is_draining;
byte num_debtors;            /* who has taken sequences out of `_open` and still owes them their ending */
bool has_ended;
bool is_records_closed;
bool is_done;

bool is_overdue;             /* what the generation thread began last has not come back within its limit */
bool is_stuck;               /* and never will */
bool is_stop_asked;          /* not by `abandon`, which leaves the thread to the end of the process */
byte num_accepted, num_told;
byte num_closes[NUM_CLIENTS];

/* worker/engine/engine.py: Engine.submit
   worker/engine/admission.py: Admission.submit */
inline submit(i, is_accepted) {
#ifdef WAKE_BEFORE_ENQUEUE
  wake(0);
#endif
#ifdef CHECK_WITHOUT_LOCK
  is_accepted = is_accepting;
#endif
  d_step {
#ifndef CHECK_WITHOUT_LOCK
    is_accepted = is_accepting;
#endif
    if
    :: is_accepted ->
       is_open[i] = true;
       num_accepted++;
       inbox ! i
    :: else
    fi
  }
#ifndef WAKE_BEFORE_ENQUEUE
  if
  :: is_accepted -> wake(0)
  :: else
  fi
#endif
}

#ifdef HAS_CANCEL
/* worker/engine/engine.py: Engine.cancel */
inline cancel(i) {
  is_cancelled[i] = true;
  wake(0)
}
#endif

active [NUM_CLIENTS] proctype client() {
  bool is_accepted;
  submit(_pid, is_accepted);
#ifdef HAS_CANCEL
  if
  :: is_accepted -> cancel(_pid)
  :: true
  fi
#endif
}

/* worker/engine/admission.py: Admission._tell */
inline tell(i) {
  d_step {
    num_closes[i]++;
    assert(num_closes[i] == 1);
    assert(!is_records_closed);  /* else the outcome would be lost */
    num_told++
  }
}

/* worker/engine/admission.py: Admission.close
   worker/engine/admission.py: Admission._take_out */
inline close(i) {
  d_step {
    is_mine = is_open[i];
#ifdef CLOSE_WITHOUT_TEST
    is_mine = true;
#endif
    is_open[i] = false
  }
  if
  :: is_mine -> tell(i)
  :: else
  fi
}

/* worker/engine/admission.py: Admission._close_records */
inline close_records() {
  if
#ifdef RECORDS_ALWAYS_CLOSED
  :: has_ended -> is_records_closed = true
#elif defined(NO_DEBTS)
  :: has_ended && state != DEAD -> is_records_closed = true
#else
  :: has_ended && !num_debtors && state != DEAD -> is_records_closed = true
#endif
  :: else
  fi
}

/* worker/engine/supervisor.py: Supervisor._end_from_outside
   worker/engine/admission.py: Admission.end_from_outside */
inline end_from_outside() {
  d_step {
    is_left[0] = is_open[0];
    is_left[LAST] = is_open[LAST];
    is_open[0] = false;
    is_open[LAST] = false;
    num_debtors++
  }
  for (i : 0 .. LAST) {
    if
    :: is_left[i] -> tell(i)
    :: else
    fi
  }
  skip;  /* no loop may end in a d_step */
  d_step {
    num_debtors--;
    close_records()
  }
}

/* worker/engine/engine.py: Engine._finish */
inline finish(i) {
  is_scheduled[i] = false;
  close(i)
}

inline die_if_failed() {
  if
  :: has_failed -> goto dies
  :: else
  fi
}

/* worker/engine/engine.py: Engine._take_inbox */
inline take_inbox() {
  do
  :: d_step { inbox ? i -> is_scheduled[i] = true }
  :: d_step { inbox ? i -> has_failed = true }  /* neither here nor there */
     break
  :: empty(inbox) -> break
  od
}

/* worker/engine/engine.py: Engine._end_everyone */
inline end_everyone() {
  take_inbox();
  for (i : 0 .. LAST) {
    if
    :: is_scheduled[i] && !has_failed -> finish(i)
    :: is_scheduled[i] -> has_failed = true
    :: else
    fi
  }
}

/* worker/engine/admission.py: Admission.stop_accepting */
inline stop_accepting() {
  d_step {
    is_accepting = false;
    if
    :: state != DEAD -> state = DRAINING
    :: else
    fi
  }
}

/* worker/engine/engine.py: Engine._end_unwanted */
inline end_unwanted() {
#ifdef HAS_CANCEL
  for (i : 0 .. LAST) {
    if
    :: is_scheduled[i] && is_cancelled[i] -> finish(i)
    :: else
    fi
  }
#else
  skip
#endif
}

/* worker/engine/engine.py: Engine._drain_if_asked */
inline drain_if_asked() {
#ifdef HAS_DRAIN
  if
  :: is_drain_asked ->
     if
     :: !is_draining -> stop_accepting(); is_draining = true
     :: else
     fi;
     if
     :: true                 /* within the limit */
     :: end_everyone(); die_if_failed()
     fi
  :: else
  fi
#else
  skip
#endif
}

/* worker/observe/watchdog.py: Stamp.overdue
   worker/engine/supervisor.py: Supervisor.begin */
inline take_long() {
  is_overdue = true;
  if
  :: is_overdue = false  /* comes back after all */
  :: goto hangs
  fi
}

/* worker/engine/engine.py: Engine._step
   worker/engine/engine.py: Engine._compute */
inline step() {
  if
  :: true
  :: take_long()
  :: goto dies
  fi;
  if
  :: is_stopping  /* a step that came back too late has nobody to deliver to */
  :: else ->
     for (i : 0 .. LAST) {
       if
       :: is_scheduled[i] && !has_prefilled -> has_prefilled = true  /* it goes on */
       :: is_scheduled[i] -> finish(i)
       :: else
       fi
     }
  fi
}

/* worker/engine/engine.py: Engine._main
   worker/engine/engine.py: Engine._become_ready
   worker/engine/engine.py: Engine._loop
   worker/engine/engine.py: Engine._die */
active proctype generation() {
  byte i;
  bool is_scheduled[NUM_CLIENTS], is_mine, has_failed, has_prefilled;

  if
  :: true
  :: take_long()
  :: goto dies
  fi;
  d_step {
    if
    :: state != DEAD -> state = READY; is_accepting = true
    :: else
    fi
  }

  do
  ::
#ifdef STOP_BEFORE_ARM
     if
     :: is_stopping -> break
     :: else
     fi;
     arm(0);
#else
     arm(0);
     if
     :: is_stopping -> break
     :: else
     fi;
#endif
     take_inbox();
     die_if_failed();
     end_unwanted();
     drain_if_asked();
     if
     :: is_scheduled[0] || is_scheduled[LAST] -> step()
     :: else -> wait(0)
     fi
  od;
#ifdef END_BEFORE_REFUSING
  end_everyone();
  die_if_failed();
  stop_accepting();
#else
  stop_accepting();
#ifndef FORGET_TO_END
  end_everyone();
  die_if_failed();
#endif
#endif
  goto ended;

hangs:
  is_stuck = true;
end_hangs:
  false;

dies:
  i = 0;
  d_step { is_accepting = false; state = DEAD }
  has_failed = false;
  end_everyone();  /* and if that fails too, the watchdog ends who is left */

ended:
  is_overdue = false;
  d_step {
    has_ended = true;
    close_records()
  }
  is_done = true
}

/* worker/engine/supervisor.py: Supervisor.liveness */
#define is_dead_or_stalled (state == DEAD || is_overdue)

/* worker/engine/supervisor.py: Supervisor.abandon */
inline abandon() {
  d_step {
#ifndef ABANDON_GOES_ON_ACCEPTING
    is_accepting = false;
#endif
    state = DEAD
  }
  is_stopping = true;
  end_from_outside()
}

/* worker/engine/supervisor.py: Supervisor.gone */
inline gone() {
  assert(!is_open[0] && !is_open[LAST])
}

/* worker/observe/watchdog.py: watch */
active proctype watchdog() {
  byte i;
  bool is_left[NUM_CLIENTS];
#if defined(NO_WATCHDOG)
  skip
#elif defined(WATCHDOG_LOOKS_TWICE)
end_watches:
  if
  :: is_done
  :: is_dead_or_stalled
  fi;
  if
  :: is_dead_or_stalled ->
     if
     :: is_dead_or_stalled -> abandon()
     :: else
     fi;
     gone()
  :: else
  fi
#else
end_watches:
  if
  :: is_dead_or_stalled -> abandon(); gone()
  :: is_done ->
     if
     :: is_dead_or_stalled -> abandon(); gone()
     :: else
     fi
  fi
#endif
}

#ifdef TWO_ABANDON
/* worker/web/sse.py: stream_job */
active proctype stream() {
  byte i;
  bool is_left[NUM_CLIENTS];
  if
  :: is_dead_or_stalled -> abandon()
  :: true
  fi
}
#endif

#ifdef LEAVER
/* worker/engine/supervisor.py: Supervisor.end_now */
active proctype leaver() {
  byte i;
  bool is_left[NUM_CLIENTS];
  if
  :: true
  :: stop_accepting();
     is_stopping = true;
     end_from_outside()
  fi
}
#endif

/* worker/engine/engine.py: Engine.drain
   worker/engine/engine.py: Engine.stop */
active proctype process() {
#ifdef HAS_DRAIN
  if
  :: true
  :: is_drain_asked = true; wake(0)
  fi;
#endif
  if
  :: true
  :: d_step { is_stopping = true; is_stop_asked = true }
     wake(0)
  fi
}

ltl ends { [] (num_told < num_accepted -> <> (num_told == num_accepted)) }
ltl hears {
  [] (is_stop_asked -> <> (is_done || is_stuck)) &&
  [] (is_drain_asked -> <> (is_draining || is_done || is_stuck))
}
