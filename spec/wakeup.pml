/*
 * How a thread or a greenlet that sleeps is woken. Included by the other models.
 *
 * There is no timer here: every `wait` is without a limit. The code waits with limits, and any limit would hide a lost
 * wake-up behind a late one. Here it is a stream that never ends, which the checker reports. To sleep for ever is no
 * deadlock by itself (a label that begins with `end`): the formulas say who must not.
 *
 * With GEVENT the consumers are greenlets of one thread: `turn` is held by the one of them that runs, or by the hub.
 */

bool is_armed[NUM_WAITERS];

/* With WHOLE_WAKE_UPS `arm` and `wake` are one step each: channel.pml takes them apart, larger models need not. */
#ifdef WHOLE_WAKE_UPS
#define WHOLE atomic
#else
#define WHOLE
#endif

#ifndef GEVENT

bool token[NUM_WAITERS];  /* the waiter's lock is free: somebody has released it */

/* worker/streams/wakeup.py: ThreadWaiter.arm */
inline arm(w) {
#ifdef MARK_BEFORE_CLEAR
  is_armed[w] = true;
  token[w] = false
#else
  WHOLE {
    token[w] = false;
    is_armed[w] = true
  }
#endif
}

/* worker/streams/wakeup.py: ThreadWaiter.wait */
inline wait(w) {
  skip;  /* SPIN takes no label at the start of a block */
end_waits:
  atomic { token[w] -> token[w] = false }
}

/* worker/streams/wakeup.py: ThreadWaiter.wake */
inline wake(w) {
  WHOLE {
    if
    :: is_armed[w] ->
       is_armed[w] = false;
       token[w] = true  /* if it was free already: RuntimeError, one release is enough */
    :: else
    fi
  }
}

/* A thread needs nobody's leave to run. */
#define begin_turn() skip
#define yield_turn() skip
#define end_turn() skip

#else

bool turn;                           /* somebody runs on the hub's thread */
bool is_parked[NUM_WAITERS];         /* `_greenlet` is set */
chan ready = [MAX_READY] of { byte };
bool is_signalled;                   /* libev folds several signals into one */

#define begin_turn() atomic { !turn -> turn = true }
#define end_turn() turn = false
#define yield_turn() end_turn(); begin_turn()

/* worker/streams/wakeup.py: GeventWaiter.arm */
inline arm(w) {
  is_armed[w] = true
}

/* worker/streams/wakeup.py: GeventWaiter.wait */
inline wait(w) {
#ifdef YIELD_BEFORE_WAIT
  yield_turn();
#endif
  is_parked[w] = true;
  end_turn();
end_waits:
  atomic { !is_parked[w] && !turn -> turn = true }
}

/* worker/streams/wakeup.py: GeventWaiter.wake
   worker/streams/wakeup.py: GeventWakeup.post */
inline wake(w) {
  if
  :: is_armed[w] ->
     is_armed[w] = false;
#ifdef SIGNAL_BEFORE_READY
     is_signalled = true;
     ready ! w
#else
     ready ! w;
     is_signalled = true
#endif
  :: else
  fi
}

/* worker/streams/wakeup.py: GeventWakeup._resume_ready
   worker/streams/wakeup.py: GeventWaiter.resume */
active proctype hub() {
  byte num_ready, w;
end_idle:
  do
  :: atomic { is_signalled && !turn -> turn = true; is_signalled = false };
     d_step {  /* whatever others append meanwhile has its turn at the next signal */
       num_ready = len(ready);
       do
       :: num_ready > 0 ->
          ready ? w;
          is_parked[w] = false;  /* if somebody is parked there */
          num_ready--
       :: else -> break
       od;
       w = 0;
       turn = false
     }
  od
}

#endif
