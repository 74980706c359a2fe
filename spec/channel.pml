/*
 * One channel: two senders that race to end it, a receiver that waits, and a client that leaves.
 *
 * Proved: at most one end, and nothing behind it. What is sent arrives once, in order and without another event having
 * to come first; then the end does, with the reason of the first close. The receiver comes to an end: the channel's,
 * or its own close.
 *
 * Faults, each at any moment: the producer dies and drops its end unclosed; it hangs for ever, and another thread
 * closes; the client leaves while the receiver works or sleeps.
 *
 * Left out: merging of what waits, several receivers as one (`merge`), statistics, a close by the garbage collector
 * inside the lock (tests/streams/interleave.py tries that at every bytecode). An item is its place in the order of
 * sending. What the channel's lock guards is one step here: nobody looks at it without the lock, and nothing under the
 * lock blocks.
 */

#define NUM_WAITERS 1
#define MAX_READY 4
#include "wakeup.pml"

/* Of the generation thread; the other closer has one more to say. Less with the hub, which has many states of its own. */
#ifdef GEVENT
#define NUM_ITEMS 1
#else
#define NUM_ITEMS 2
#endif
#define END 0        /* the sentinel in the queue */

#define NOBODY 0
#define GENERATION 1
#define WATCHDOG 2
#define COLLECTOR 3  /* a sender that was dropped unclosed closes itself */

#define OK 1
#define CHANNEL_CLOSED 2
#define CHANNEL_BROKEN 3

#define NOTHING 1
#define ITEMS 2
#define ENDED 3
#define LEFT 4

/* worker/streams/channel.py: _Shared.__init__ */
chan queue = [NUM_ITEMS + 2] of { byte };
byte sentinel = NOBODY;  /* who closed, which is the reason of the end */
bool is_broken;
byte num_sent;

byte num_refs = 2;       /* who holds the sending end */
bool is_stuck, is_gone;  /* the generation thread: in a step that never returns; not there any more */
bool is_slow;            /* it is in a very long step, and nobody takes that for a hang */

byte num_received;
bool is_closed;          /* by the receiver's own side */
bool is_over;            /* the receiver has been told an end */

inline refused(result) {
  if
  :: sentinel != NOBODY -> result = CHANNEL_CLOSED
  :: sentinel == NOBODY && is_broken -> result = CHANNEL_BROKEN
  :: else -> result = OK
  fi
}

inline append(result) {
  if
  :: result == OK ->
     assert(sentinel == NOBODY);  /* nothing behind the end */
     num_sent++;
     queue ! num_sent
  :: else
  fi
}

/* worker/streams/channel.py: SendChannel.send */
inline send(result) {
#if defined(CHECK_WITHOUT_LOCK)
  d_step { refused(result) }
  d_step { append(result) }
#elif defined(WAKE_BEFORE_APPEND)
  wake(0);
  d_step { refused(result); append(result) }
#else
  d_step { refused(result); append(result) }
#endif
#ifndef WAKE_BEFORE_APPEND
  if
  :: result == OK -> wake(0)
  :: else
  fi
#endif
}

inline append_end(reason) {
  is_first = sentinel == NOBODY;
#ifdef CLOSE_WITHOUT_TEST
  is_first = true;
#endif
  if
  :: is_first ->
     assert(sentinel == NOBODY);  /* one end */
#ifndef END_BESIDE_QUEUE
     queue ! END;
#endif
     sentinel = reason
  :: else
  fi
}

/* worker/streams/channel.py: SendChannel.close */
inline close(reason) {
#ifdef WAKE_BEFORE_END
  wake(0);
  d_step { append_end(reason) }
#else
  d_step { append_end(reason) }
  if
  :: is_first -> wake(0)
  :: else
  fi
#endif
}

/* worker/streams/channel.py: SendChannel.__del__ */
inline drop() {
  d_step {
    num_refs--;
    is_first = false;
    if
#ifndef DROP_WITHOUT_CLOSE
    :: num_refs == 0 -> append_end(COLLECTOR)
#endif
    :: else
    fi
  }
  if
  :: is_first -> wake(0)
  :: else
  fi
}

/* worker/engine/engine.py: Engine._advance
   worker/engine/admission.py: Admission.close */
active proctype generation() {
  byte result, n;
  bool is_first;
  do
  :: n < NUM_ITEMS ->
     send(result);
     n = (result == OK -> n + 1 : NUM_ITEMS)  /* else the client has left, or somebody has ended the stream */
  :: n == NUM_ITEMS ->
#ifdef FORGET_TO_CLOSE
     goto forgotten;
#endif
     close(GENERATION);
     break
  :: break  /* dies */
  :: is_stuck = true;
end_stuck:
     false
  :: is_slow = true;
end_slow:
     false
  od;
  is_gone = true;
  drop();
#ifdef FORGET_TO_CLOSE
  goto over;
forgotten:  /* its end lies in a thread-local, say, and is never dropped */
  is_gone = true;
over:
#endif
  skip
}

/* worker/engine/supervisor.py: Supervisor.abandon
   worker/engine/admission.py: Admission.close */
active proctype watchdog() {
  byte result;
  bool is_first;
  if
  :: is_gone || is_slow  /* nothing to do */
  :: true ->  /* stuck, or taken for stuck while it comes back */
#ifndef GEVENT
     send(result);
#endif
     close(WATCHDOG)
  fi;
  drop()
}

/* worker/streams/channel.py: ReceiveChannel.take */
inline take(result) {
  if
  :: is_closed -> result = LEFT
  :: !is_closed && has_end -> result = ENDED
  :: else ->
     d_step {
       result = NOTHING;
       do
       :: queue ? [item] ->
          queue ? item;
          assert(!has_end);
          if
          :: item == END -> has_end = true; reason = sentinel
          :: else ->
             num_received++;
             assert(item == num_received);
             result = ITEMS
          fi
       :: else -> break
       od;
       item = 0
     }
#ifdef END_BESIDE_QUEUE
     has_end = sentinel != NOBODY;
     reason = sentinel;
#endif
     if
     :: result == NOTHING && has_end -> result = ENDED
     :: else
     fi
  fi
}

/* worker/streams/channel.py: Receiver.receive
   worker/streams/channel.py: ReceiveChannel.listen
   The last comes before the first `arm`, and nobody is woken who has not armed, so it is no step here. */
active proctype consumer() {
  byte item, result, reason;
  bool has_end;
  begin_turn();
  do
  ::
#ifdef LOOK_BEFORE_ARM
     take(result);
     arm(0);
#else
     arm(0);
     take(result);
#endif
     if
     :: result == NOTHING -> wait(0)
     :: result == ITEMS -> yield_turn()  /* it writes them to a socket, which may take its time */
     :: else -> break
     fi
  od;
  if
  :: result == ENDED ->
     assert(num_received == num_sent || is_closed);  /* its own close throws the rest away */
     assert(reason == sentinel)
  :: else -> assert(result == LEFT)
  fi;
  is_over = true;
  end_turn()
}

/* worker/streams/channel.py: ReceiveChannel.close */
active proctype client() {
  byte item;
  if
  :: true  /* reads to the end */
  :: true ->
     is_closed = true;
     d_step {
       is_broken = true;
       do
       :: queue ? [item] -> queue ? item
       :: else -> break
       od;
       item = 0
     }
#ifndef LEAVE_WITHOUT_WAKE
     wake(0)
#endif
  fi
}

ltl ends { <> (is_over || is_slow) }
ltl arrives {
  [] (num_received < num_sent || is_closed -> <> (is_over || (num_received == num_sent && !is_closed)))
}
