/*
 * A job's journal and two clients that read it. One stays; the other may lose its connection, at any event or while it
 * waits, and comes back with the number of the last event that it got. The sweeper writes down what waits when the job
 * has ended; with WATCHED, instead of it, the watcher's thread closes a reader, and there is one token less.
 *
 * Proved: each client gets every token once and in order and then the terminal event, over all of its connections, and
 * comes to its end. An event arrives without another having to be sent first. The count of readers is right.
 *
 * Faults, each at any moment: the producer ends, or is slow for ever; a client leaves, noticed by its own response, by
 * the watcher's thread while the reader sleeps, or by both.
 *
 * Left out: `forget`; that the last one to leave may cancel (one more reason of the producer to end); the
 * wire format. The channel is what channel.pml proves of it: a queue that loses nothing and wakes who listens. What
 * the job's lock guards is one step, and so is a wake-up.
 */

#define NUM_CLIENTS 2
#define NUM_WAITERS 3   /* one for each reader: of the first client, of the second, of the first when it is back */
#define WHOLE_WAKE_UPS
#include "wakeup.pml"

#ifdef WATCHED
#define NUM_TOKENS 1
#else
#define NUM_TOKENS 2
#endif
#define TERMINAL 255
#define EVENT(first, last) ((first) * 16 + (last))  /* tokens that waited together are one event */
#define FIRST(event) ((event) / 16)
#define LAST(event) ((event) % 16)

/* worker/job.py: Job.__init__ */
byte journal[NUM_TOKENS + 2];  /* [0] is `started` */
byte num_events = 1;
bool has_ended;                /* `ended_at` is set */
byte num_readers;

byte num_sent, num_taken;      /* tokens that were put in the channel, and that were taken from it */
bool is_end_sent, is_end_taken;
bool is_slow;

bool is_listening[NUM_WAITERS], is_closed[NUM_WAITERS];  /* one for each reader */
byte num_received[NUM_CLIENTS];                          /* tokens on the client's side */
bool is_over[NUM_CLIENTS];

inline wake_listeners() {
  for (w : 0 .. NUM_WAITERS - 1) {
    atomic {
      if
      :: is_listening[w] ->
         wake(w);
#ifdef WAKE_ONE
         w = NUM_WAITERS
#endif
      :: else
      fi
    }
  }
}

/* worker/streams/channel.py: SendChannel.send
   worker/streams/channel.py: SendChannel.close */
proctype producer() {
  byte w;
  do
  :: num_sent < NUM_TOKENS -> num_sent++; wake_listeners()
  :: break  /* done, cancelled, failed or dropped */
  :: is_slow = true;
end_slow:
     false
  od;
  is_end_sent = true;
  wake_listeners()
}

/* worker/job.py: Job._write_down
   worker/streams/channel.py: ReceiveChannel.take */
inline write_down() {
  do
  :: has_ended -> break
  :: else ->
     d_step {  /* take */
       event = 0;
       if
       :: is_end_taken -> event = TERMINAL
       :: else ->
          if
          :: num_taken < num_sent -> event = EVENT(num_taken + 1, num_sent); num_taken = num_sent
          :: num_taken == num_sent && is_end_sent -> event = TERMINAL
          :: else
          fi;
          is_end_taken = is_end_sent
       fi
     }
     if
     :: event == 0 -> break
     :: else ->
        d_step {  /* write */
          has_ended = event == TERMINAL;
          if
#ifdef TERMINAL_BESIDE_JOURNAL
          :: event == TERMINAL
#endif
          :: else ->
             journal[num_events] = event;
             num_events++
          fi;
          event = 0
        }
     fi
  od
}

#ifdef PUMP_WITHOUT_LOCK
#define LOCKED
#else
#define LOCKED atomic
#endif

/* worker/job.py: Job._events_from */
inline look() {
  LOCKED {
    write_down();
    atomic { until = num_events; is_done = has_ended }
  }
}

#ifndef WATCHED
/* worker/job.py: Job.expire
   worker/streams/channel.py: ReceiveChannel.peek_end */
proctype sweeper() {
  byte event;
  if
  :: is_end_sent ->
     LOCKED {
       write_down()
     }
  :: true
  fi
}
#endif

/* worker/job.py: JobReader.close
   worker/job.py: Job._leave
   worker/streams/channel.py: ReceiveChannel.unlisten */
inline leave(r) {
  is_listening[r] = false;
  d_step {
    if
#ifndef LEAVE_WITHOUT_TEST
    :: is_closed[r]
#endif
    :: else ->
       is_closed[r] = true;
       assert(num_readers > 0);
       num_readers--
    fi
  }
#ifndef LEAVE_WITHOUT_WAKE
  wake(r)
#endif
}

#ifdef WATCHED
/* worker/web/disconnect.py: DisconnectWatcher._tell */
proctype watcher(byte r) {
end_connected:
  is_listening[r] -> leave(r)
}
#endif

/* What the client gets of a batch: all of it, or if its connection is cut some of it or nothing. */
inline receive() {
  atomic {
    if
    :: cut = until
    :: r == 0 -> cut = next
    :: r == 0 && next + 1 < until -> cut = next + 1
    fi;
    do
    :: next < cut ->
       event = journal[next];
       if
       :: next == 0  /* started */
       :: next > 0 && event == TERMINAL ->
          assert(num_received[c] == num_sent);
          has_terminal = true
       :: else ->
          assert(FIRST(event) == num_received[c] + 1);
          num_received[c] = LAST(event)
       fi;
       next++
    :: else -> break
    od;
    is_cut = next < until;
    event = 0;
    cut = 0;
    until = 0
  }
}

/* worker/job.py: Job.read
   worker/job.py: JobReader.__init__
   worker/job.py: JobReader.read
   worker/streams/channel.py: ReceiveChannel.listen
   worker/web/sse.py: stream_job */
proctype client(byte c) {
  byte r, next, until, cut, event;
  bool is_done, is_cut, has_terminal;
  r = c;

connect:
  atomic {
    num_readers++;
#ifndef LISTEN_AFTER_LOOK
    is_listening[r] = true
#endif
  }
  do
  ::
#if defined(LOOK_BEFORE_ARM)
     look();
     arm(r);
     if
     :: is_closed[r] -> break
     :: else
     fi;
#elif defined(CLOSED_BEFORE_ARM)
     if
     :: is_closed[r] -> break
     :: else
     fi;
     arm(r);
     look();
#else
     arm(r);
     if
     :: is_closed[r] -> break
     :: else
     fi;
     look();
#endif
     if
     :: next == until && !is_done ->
#ifdef LISTEN_AFTER_LOOK
        is_listening[r] = true;
#endif
        wait(r)
     :: next < until && is_closed[r] -> break  /* the batch does not reach the client */
     :: else ->
        receive();
        if
        :: is_done || is_cut -> break
        :: else
        fi
     fi
  od;
  leave(r);
  if
  :: r == 0 ->  /* comes back, if only to be told that there is nothing more */
     r = NUM_CLIENTS;
     is_done = false;
     is_cut = false;
     until = 0;
#ifdef RESUME_AT_LAST
     next = (next > 0 -> next - 1 : 0);
#endif
     goto connect
  :: else
  fi;
  assert(has_terminal && next == num_events);
  is_over[c] = true
}

init {
  atomic {
    run client(0);
    run client(1);
#ifdef WATCHED
    run watcher(0);
#else
    run sweeper();
#endif
    run producer()
  }
}

ltl ends { [] (is_end_sent -> <> (is_over[0] && is_over[1])) }
ltl arrives { [] (num_received[0] < num_sent -> <> (num_received[0] == num_sent)) }
