/* The load: clients and backend of a relay under test, in one thread under one epoll instance.
 *
 *     load serve PORT                          the backend alone, until killed
 *     load ping  LISTEN CONNECT HELLO [k=v…]   round trips of 64 bytes on `streams` connections for `seconds`
 *     load churn LISTEN CONNECT HELLO [k=v…]   connect, hello, its answer, close: `streams` at a time for `seconds`
 *     load paced LISTEN CONNECT HELLO [k=v…]   the same, with `messages` round trips of 64 bytes between answer and close,
 *                                              and `pause` seconds before each
 *     load bulk  LISTEN CONNECT HELLO [k=v…]   `bytes` on each of `streams` connections, both ways with both=1
 *     load steady LISTEN CONNECT HELLO [k=v…]  one round trip of 64 bytes every `pause` seconds on each of `streams`
 *                                              connections for `seconds`, beside `bulk` uploads that send `rate` bytes a
 *                                              second together; tells also how long a stream got nothing at most, and the
 *                                              uploads' bytes in each tenth of a second
 *     load flood 0 CONNECT HELLO [k=v…]        connect, hello, close, waiting for nothing, for `seconds`: an attacker, who
 *                                              does so `rate` times a second, or as often as it can
 *
 * LISTEN is the port of the backend (0: none, it is another process), CONNECT the relay's, HELLO a file with the
 * ClientHello that begins each stream. `idle=N` opens N more connections first and leaves them alone, `bulk=N` keeps N
 * uploads running beside a ping, `warm=S` runs S seconds before anything counts.
 *
 * Prints "ready" when all connections stand, waits for a line, works, prints one line of JSON, waits for a line, ends.
 * So whoever started it can read the relay's CPU time around the work alone.
 *
 * What a stream is for travels in the random field of its hello. Every byte that arrives is compared with the pattern
 * that its stream has at that position, and at its end the backend tells how many arrived. Anything wrong ends the
 * program with a message and exit code 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64, CHUNK = 1 << 17, PERIOD = 262139 /* prime: no buffer size divides it */ };
enum { SLOT_NS = 100000000, SLOTS_MAX = 1200, TICK_NS = 20000000 /* steady: between two pushes of an upload */ };
enum { OPENING = 64 /* connections in the making at a time, below any listen queue */ };
enum { RANDOM_AT = 11, RANDOM_SIZE = 32, HELLO_MAX = 1 << 14 };
enum kind { PING, UPLOAD, BOTH, IDLE, CHURN, PACED };
#define MAGIC "meshload"
#define ENDLESS UINT64_MAX
#define VERDICT_MAGIC 0x6d657368676f6f64ull

struct order { /* what lies in the random field */
    char magic[8];
    uint32_t kind, id;
    uint64_t bytes;
};
struct verdict {
    uint64_t magic, received;
};
struct stream {
    int fd, server, watching_out;
    int open;    /* client: the hello was answered; server: the hello has come */
    int started; /* server of both ways: payload has come, so ours may flow */
    int ended;   /* client: nothing more will be sent; server: the client's end has come */
    enum kind kind;
    uint32_t id, out, in; /* where in the pattern the next byte of each direction lies */
    uint64_t sent, received, bytes;
    uint64_t since; /* client: when the round trip began, in ns */
    uint64_t due;   /* client, paced: when the next message is to be sent */
    uint64_t heard; /* server of a steady upload: when bytes came last */
    struct stream *next; /* client, paced: whose turn comes then */
    long messages;       /* client, paced: how many are still to be sent */
    size_t partial; /* bytes of an unfinished hello, message or verdict */
    union {
        unsigned char head[RANDOM_AT + RANDOM_SIZE];
        struct verdict verdict;
    } got;
};

static unsigned char pattern[PERIOD + CHUNK], buffer[CHUNK], hello[HELLO_MAX];
static size_t hello_size;
static int epoll, listener = -1;
static struct sockaddr_in relay;
static uint32_t next_id;
static int patience = 20000; /* ms */
static int opening, outstanding, servers, finished;
static uint64_t deadline, operations, moved;
static int measuring;
static uint32_t *latencies; /* ns */
static size_t latency_count, latency_room;
static long streams = 1, idle, bulk, both;
static uint64_t bytes;
static long messages = 4;
static double seconds = 1, warm, pause_for, rate;
static int steady;
static uint64_t silence, slots[SLOTS_MAX], begun_at, tick_at; /* steady: ns without a byte, bytes of uploads by the time */
static struct stream *first_paused, *last_paused; /* all pause equally long, so who comes last is due last */

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void note_time(uint64_t since) {
    if (!measuring) return;
    if (latency_count == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 1 << 16;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (!latencies) die("out of memory");
    }
    uint64_t took = now() - since;
    latencies[latency_count++] = took > UINT32_MAX ? UINT32_MAX : took;
}

static void note_latency(uint64_t since) {
    if (measuring) operations++;
    note_time(since);
}

static void watch(struct stream *stream, int operation, int out) {
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = stream};
    stream->watching_out = out;
    if (epoll_ctl(epoll, operation, stream->fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

static struct stream *new_stream(int fd, int server) {
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream) die("out of memory");
    stream->fd = fd;
    stream->server = server;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return stream;
}

/* Both ends of a stream begin at places of their own in the pattern, so that no stream passes for another one. */
static void place(struct stream *stream) {
    uint32_t up = (uint64_t)stream->id * 7919 % PERIOD, down = (up + PERIOD / 2) % PERIOD;
    stream->out = stream->server ? down : up;
    stream->in = stream->server ? up : down;
}

/* Send the next bytes of the pattern, up to a chunk; what the socket does not take is tried again later. */
static void push(struct stream *stream, uint64_t count) {
    if (count > CHUNK) count = CHUNK;
    ssize_t sent = send(stream->fd, pattern + stream->out, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno == EAGAIN) return;
        die("stream %u, %s: send: %s", stream->id, stream->server ? "backend" : "client", strerror(errno));
    }
    stream->out = (stream->out + sent) % PERIOD;
    stream->sent += sent;
}

/* A message or an answer: so small that a socket with nothing in flight takes it whole. */
static void push_whole(struct stream *stream, size_t count) {
    uint64_t before = stream->sent;
    push(stream, count);
    if (stream->sent - before != count) die("stream %u: a message of %zu bytes did not fit", stream->id, count);
}

static void check(struct stream *stream, const unsigned char *data, size_t count) {
    if (memcmp(data, pattern + stream->in, count))
        die("stream %u, %s: wrong bytes after %llu", stream->id, stream->server ? "backend" : "client",
            (unsigned long long)stream->received);
    stream->in = (stream->in + count) % PERIOD;
    stream->received += count;
}

static void discard(struct stream *stream) {
    close(stream->fd);
    free(stream);
}

/* --- the backend ------------------------------------------------------------------------------------------------- */

static void accept_all(void) {
    int fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        servers++;
        watch(new_stream(fd, 1), EPOLL_CTL_ADD, 0);
    }
    if (errno != EAGAIN && errno != ECONNABORTED) die("accept: %s", strerror(errno));
}

/* Take bytes of the hello; gives how many of `count` belonged to it. */
static size_t take_hello(struct stream *stream, const unsigned char *data, size_t count) {
    size_t head = sizeof stream->got.head, used = 0;
    while (used < count && stream->partial < head) stream->got.head[stream->partial++] = data[used++];
    if (stream->partial < head) return used;
    size_t whole = 5 + (stream->got.head[3] << 8 | stream->got.head[4]);
    size_t rest = whole - stream->partial < count - used ? whole - stream->partial : count - used;
    stream->partial += rest;
    if (stream->partial < whole) return used + rest;
    struct order order;
    memcpy(&order, stream->got.head + RANDOM_AT, sizeof order);
    if (memcmp(order.magic, MAGIC, sizeof order.magic)) die("the backend got a hello that is not the load's");
    stream->kind = order.kind;
    stream->id = order.id;
    stream->bytes = order.bytes;
    stream->open = 1;
    place(stream);
    push_whole(stream, MESSAGE);
    return used + rest;
}

/* An upload goes on: for how long did it not? */
static void note_upload(struct stream *stream, size_t count) {
    uint64_t time = now(), slot = (time - begun_at) / SLOT_NS;
    if (stream->heard && time - stream->heard > silence) silence = time - stream->heard;
    stream->heard = time;
    if (slot < SLOTS_MAX) slots[slot] += count;
}

static void serve_payload(struct stream *stream, const unsigned char *data, size_t count) {
    check(stream, data, count);
    if (steady && measuring && stream->kind == UPLOAD) note_upload(stream, count);
    if (stream->kind == PING || stream->kind == PACED) push_whole(stream, count);
    if (stream->kind == CHURN) die("stream %u: bytes that nobody sent", stream->id);
    if (stream->kind == BOTH && !stream->started) {
        stream->started = 1;
        watch(stream, EPOLL_CTL_MOD, 1);
    }
}

static void give_verdict(struct stream *stream) {
    struct verdict verdict = {VERDICT_MAGIC, stream->received};
    if (send(stream->fd, &verdict, sizeof verdict, MSG_NOSIGNAL) != sizeof verdict)
        die("stream %u: no room for the verdict", stream->id);
}

static void serve(struct stream *stream, uint32_t events) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !stream->ended) {
        ssize_t count = recv(stream->fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (count < 0 && errno != EAGAIN) die("stream %u, backend: recv: %s", stream->id, strerror(errno));
        if (count > 0) {
            size_t used = stream->open ? 0 : take_hello(stream, buffer, count);
            if ((size_t)count > used) serve_payload(stream, buffer + used, count - used);
        }
        if (!count) {
            int bulky = stream->kind == UPLOAD || stream->kind == BOTH;
            if (!stream->open && stream->partial) die("a stream ended inside its hello"); /* a bare probe may end */
            if (bulky && stream->bytes != ENDLESS && stream->received != stream->bytes)
                die("stream %u: %llu of %llu bytes arrived", stream->id, (unsigned long long)stream->received,
                    (unsigned long long)stream->bytes);
            if (stream->kind != BOTH) {
                if (bulky) give_verdict(stream);
                servers--;
                discard(stream);
                return;
            }
            stream->ended = 1;
            struct epoll_event event = {.events = EPOLLOUT, .data.ptr = stream};
            epoll_ctl(epoll, EPOLL_CTL_MOD, stream->fd, &event);
        }
    }
    if (stream->kind == BOTH && stream->started) {
        uint64_t left = stream->bytes + MESSAGE - stream->sent;
        if (left) push(stream, left);
        else if (stream->ended) {
            give_verdict(stream);
            servers--;
            discard(stream);
        } else if (stream->watching_out) watch(stream, EPOLL_CTL_MOD, 0);
    }
}

/* --- the clients ------------------------------------------------------------------------------------------------- */

static void open_client(enum kind kind) {
    uint64_t since = now();
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    struct stream *stream = new_stream(fd, 0);
    if (connect(fd, (struct sockaddr *)&relay, sizeof relay)) die("connect: %s", strerror(errno));
    stream->since = since;
    stream->kind = kind;
    stream->id = ++next_id;
    stream->bytes = bytes;
    place(stream);
    struct order order = {.kind = kind, .id = stream->id, .bytes = bytes};
    memcpy(order.magic, MAGIC, sizeof order.magic);
    memcpy(hello + RANDOM_AT, &order, sizeof order);
    if (send(fd, hello, hello_size, MSG_NOSIGNAL) != (ssize_t)hello_size) die("hello: %s", strerror(errno));
    opening++;
    watch(stream, EPOLL_CTL_ADD, 0);
}

static struct stream **opened; /* the ping streams, to start them together */
static long opened_count;
static struct stream **uploads;
static long upload_count;

static void send_message(struct stream *stream) {
    stream->since = now();
    outstanding++;
    push_whole(stream, MESSAGE);
}

/* A paced stream has got an answer: it pauses, or is over and another one begins. */
static void pace(struct stream *stream) {
    if (steady ? !measuring || now() < deadline : stream->messages-- > 0) {
        stream->due = now() + (uint64_t)(pause_for * 1e9);
        stream->next = NULL;
        if (last_paused) last_paused->next = stream;
        else first_paused = stream;
        last_paused = stream;
        return;
    }
    if (measuring && !steady) operations++;
    discard(stream);
    outstanding--;
    if (now() < deadline) open_client(PACED);
}

static void send_due(void) {
    while (first_paused && first_paused->due <= now()) {
        struct stream *stream = first_paused;
        first_paused = stream->next;
        if (!first_paused) last_paused = NULL;
        stream->since = now();
        push_whole(stream, MESSAGE);
    }
}

static void on_answer(struct stream *stream) {
    opening--;
    stream->open = 1;
    if (stream->kind == IDLE) push_whole(stream, MESSAGE); /* as the end of a handshake: a hello alone is not believed */
    if (stream->kind == PING) opened[opened_count++] = stream;
    if (stream->kind == UPLOAD || stream->kind == BOTH) uploads[upload_count++] = stream;
    if (stream->kind == PACED) {
        stream->messages = messages;
        outstanding++;
        pace(stream);
    }
    if (stream->kind == CHURN) {
        note_latency(stream->since);
        discard(stream);
        if (now() < deadline) open_client(CHURN);
    }
}

static void take_verdict(struct stream *stream, const unsigned char *data, size_t count) {
    if (stream->partial + count > sizeof stream->got.verdict) die("stream %u: bytes behind the verdict", stream->id);
    memcpy((unsigned char *)&stream->got.verdict + stream->partial, data, count);
    stream->partial += count;
    if (stream->partial < sizeof stream->got.verdict) return;
    if (stream->got.verdict.magic != VERDICT_MAGIC) die("stream %u: a broken verdict", stream->id);
    if (stream->got.verdict.received != stream->sent)
        die("stream %u: %llu of %llu bytes arrived", stream->id, (unsigned long long)stream->got.verdict.received,
            (unsigned long long)stream->sent);
    moved += stream->received + stream->sent - MESSAGE;
    finished++;
}

static void receive(struct stream *stream) {
    ssize_t count = recv(stream->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (count < 0 && errno == EAGAIN) return;
    if (count < 0) die("stream %u, client: recv: %s", stream->id, strerror(errno));
    if (!count) {
        int told = (stream->kind == UPLOAD || stream->kind == BOTH) && stream->partial == sizeof(struct verdict);
        if (!told) die("stream %u, client: ended too early", stream->id);
        discard(stream);
        return;
    }
    uint64_t pattern_bytes = stream->kind == BOTH ? stream->bytes + MESSAGE : stream->kind == UPLOAD ? MESSAGE : ENDLESS;
    uint64_t left = pattern_bytes - stream->received;
    size_t part = (uint64_t)count < left ? (size_t)count : left;
    check(stream, buffer, part);
    if ((size_t)count > part) take_verdict(stream, buffer + part, count - part);
    if (!stream->open) {
        if (stream->received >= MESSAGE) on_answer(stream);
    } else if (stream->kind == PING && stream->received % MESSAGE == 0) {
        note_latency(stream->since);
        outstanding--;
        if (now() < deadline) send_message(stream);
    } else if (stream->kind == PACED && stream->received % MESSAGE == 0) {
        if (steady) note_latency(stream->since);
        else note_time(stream->since);
        pace(stream);
    }
}

static void drive(struct stream *stream, uint32_t events) {
    if (events & EPOLLOUT) {
        int over = stream->bytes == ENDLESS && now() >= deadline;
        if (stream->sent < stream->bytes && !over) push(stream, stream->bytes - stream->sent);
        if (stream->sent == stream->bytes || over) {
            shutdown(stream->fd, SHUT_WR);
            stream->ended = 1;
            watch(stream, EPOLL_CTL_MOD, 0);
        }
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(stream);
}

/* Each upload sends its part, as far as it can; what it cannot is left out, and so is seen to be missing. */
static void tick(void) {
    int over = now() >= deadline;
    tick_at = now() + TICK_NS;
    for (long i = 0; i < upload_count; i++) {
        struct stream *stream = uploads[i];
        if (!stream || stream->ended) continue;
        if (!over) push(stream, rate / upload_count * TICK_NS / 1e9);
        else {
            shutdown(stream->fd, SHUT_WR);
            stream->ended = 1;
        }
    }
    if (over) tick_at = 0;
}

/* --- the work ---------------------------------------------------------------------------------------------------- */

static void turn(void) {
    static struct epoll_event events[256];
    struct timespec rest = {patience / 1000, patience % 1000 * 1000000};
    if (tick_at && tick_at <= now()) tick();
    if (first_paused || tick_at) {
        uint64_t time = now(), due = first_paused ? first_paused->due : tick_at;
        if (tick_at && tick_at < due) due = tick_at;
        uint64_t left = due > time ? due - time : 0;
        rest = (struct timespec){left / 1000000000, left % 1000000000};
    }
    int count = epoll_pwait2(epoll, events, 256, patience < 0 ? NULL : &rest, NULL);
    if (first_paused) send_due();
    else if (!count && !tick_at)
        die("nothing has happened for %d s (%d opening, %d outstanding, %d finished)", patience / 1000, opening,
            outstanding, finished);
    if (count < 0 && errno != EINTR) die("epoll_pwait2: %s", strerror(errno));
    for (int i = 0; i < count; i++) {
        struct stream *stream = events[i].data.ptr;
        if (!stream) accept_all();
        else if (stream->server) serve(stream, events[i].events);
        else drive(stream, events[i].events);
    }
}

static void open_all(enum kind kind, long count) {
    while (count || opening) {
        while (count && opening < OPENING) {
            open_client(kind);
            count--;
        }
        turn();
    }
}

static void ping(double time) {
    deadline = now() + (uint64_t)(time * 1e9);
    for (long i = 0; i < opened_count; i++) send_message(opened[i]);
    while (outstanding) turn();
}

static void churn(double time, enum kind kind) {
    deadline = now() + (uint64_t)(time * 1e9);
    for (long i = 0; i < streams; i++) open_client(kind);
    while (opening || outstanding || (listener >= 0 && servers > idle)) turn();
}

/* Nothing is read, so what the relay answers is a reset to it; and its accept queue is full all the time if it is slow. */
static void flood(double time) {
    uint64_t begun = now();
    deadline = begun + (uint64_t)(time * 1e9);
    while (now() < deadline) {
        while (rate > 0 && operations > (now() - begun) / 1e9 * rate) usleep(100);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0) die("socket: %s", strerror(errno));
        if (connect(fd, (struct sockaddr *)&relay, sizeof relay)) die("connect: %s", strerror(errno));
        /* A relay that has seen enough may have reset the stream already. */
        if (send(fd, hello, hello_size, MSG_NOSIGNAL) < 0 && errno != ECONNRESET && errno != EPIPE)
            die("hello: %s", strerror(errno));
        close(fd);
        operations++;
    }
}

static void start_uploads(void) {
    for (long i = 0; i < upload_count; i++) watch(uploads[i], EPOLL_CTL_MOD, 1);
}

static void await_line(const char *say) {
    char line[16];
    puts(say);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(0);
}

static int by_size(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static double percentile(double share) {
    if (!latency_count) return 0;
    size_t at = share * latency_count;
    return latencies[at < latency_count ? at : latency_count - 1] / 1e3;
}

static void work(const char *mode) {
    int pinging = !strcmp(mode, "ping"), churning = !strcmp(mode, "churn"), flooding = !strcmp(mode, "flood");
    int pacing = !strcmp(mode, "paced");
    steady = !strcmp(mode, "steady");
    enum kind kind = pacing ? PACED : CHURN;
    opened = calloc(streams + 1, sizeof *opened);
    uploads = calloc(streams + bulk + 1, sizeof *uploads);
    open_all(IDLE, idle);
    if (pinging) open_all(PING, streams);
    else if (steady) open_all(PACED, streams);
    else if (!churning && !pacing && !flooding) open_all(both ? BOTH : UPLOAD, streams);
    bytes = ENDLESS;
    if (bulk) open_all(UPLOAD, bulk);
    if (warm > 0 && pinging) ping(warm);
    if (warm > 0 && (churning || pacing)) churn(warm, kind);
    await_line("ready");

    measuring = 1;
    uint64_t begun = now();
    deadline = begun + (uint64_t)(seconds * 1e9);
    begun_at = begun;
    if (steady) tick();
    else start_uploads();
    if (pinging && seconds > 0) ping(seconds);
    if (churning || pacing) churn(seconds, kind);
    if (flooding) flood(seconds);
    while (finished < upload_count || (steady && outstanding)) turn();
    double took = (now() - begun) / 1e9;
    measuring = 0;

    qsort(latencies, latency_count, sizeof *latencies, by_size);
    static char answer[512 + SLOTS_MAX * 21];
    int length = snprintf(
        answer, 512,
        "{\"operations\": %llu, \"seconds\": %.6f, \"bytes\": %llu, \"p50_us\": %.3f, \"p90_us\": %.3f, "
        "\"p99_us\": %.3f, \"max_us\": %.3f, \"silence_us\": %.3f, \"slots\": [",
        (unsigned long long)operations, took, (unsigned long long)moved, percentile(0.5), percentile(0.9),
        percentile(0.99), percentile(1), silence / 1e3);
    /* What came behind the deadline is no whole slot. */
    for (int i = 0; steady && i < SLOTS_MAX && i < (int)(seconds * 1e9 / SLOT_NS); i++)
        length += sprintf(answer + length, "%s%llu", i ? "," : "", (unsigned long long)slots[i]);
    strcpy(answer + length, "]}");
    await_line(answer);
}

static void listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 65535))
        die("port %d: %s", port, strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
}

static void read_hello(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die("%s: %s", path, strerror(errno));
    hello_size = fread(hello, 1, sizeof hello, file);
    fclose(file);
    if (hello_size < RANDOM_AT + RANDOM_SIZE) die("%s is no hello", path);
}

static void set_option(const char *option) {
    const char *value = strchr(option, '=');
    if (!value++) die("not key=value: %s", option);
#define IS(name) (!strncmp(option, name "=", sizeof name))
    if (IS("streams")) streams = atol(value);
    else if (IS("idle")) idle = atol(value);
    else if (IS("bulk")) bulk = atol(value);
    else if (IS("both")) both = atol(value);
    else if (IS("bytes")) bytes = strtoull(value, NULL, 10);
    else if (IS("seconds")) seconds = atof(value);
    else if (IS("warm")) warm = atof(value);
    else if (IS("messages")) messages = atol(value);
    else if (IS("rate")) rate = atof(value);
    else if (IS("pause")) pause_for = atof(value);
    else die("unknown option %s", option);
}

int main(int count, char **arguments) {
    if (count < 3) die("usage: see the top of the source");
    uint64_t state = 0x9e3779b97f4a7c15ull;
    for (size_t i = 0; i < sizeof pattern; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        pattern[i] = i < PERIOD ? state >> 32 : pattern[i - PERIOD];
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    epoll = epoll_create1(0);
    if (atoi(arguments[2])) listen_on(atoi(arguments[2]));
    if (!strcmp(arguments[1], "serve"))
        for (patience = -1;;) turn();
    if (count < 5) die("usage: see the top of the source");
    relay.sin_family = AF_INET;
    relay.sin_port = htons(atoi(arguments[3]));
    relay.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    read_hello(arguments[4]);
    for (int i = 5; i < count; i++) set_option(arguments[i]);
    work(arguments[1]);
    return 0;
}
