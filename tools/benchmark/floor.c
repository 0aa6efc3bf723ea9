/* The floor: what handing over pixels costs where nothing but the job itself is done.
 *
 * Two processes, a memfd that both map and a Unix socket. The writer paints the rectangles of each
 * update into a buffer of the shared memory (memcpy from a picture of its own, or memset), takes
 * the time, and sends a message of as many bytes as SHM_DAMAGE has: 6 + 48 + 16 for each rectangle.
 * The reader blocks in recv, copies the rectangles with memcpy to private memory that begins on a
 * page, takes the time, and answers each update with 22 bytes in a send of its own.
 * With --window N up to N updates are under way; the writer blocks when none may be sent. What it
 * leaves out: checking anything, merging rectangles, more than one reader, and the 6 bytes with
 * which a SPICE client acknowledges every twentieth message.
 *
 *     floor --width 1920 --height 1080 --window 1 --pause-us 2000 --seconds 1 --warmup 0.2
 *           --writer-cpu 0 --reader-cpu 1 --paint copy|fill --step 0 TOP,LEFT,BOTTOM,RIGHT...
 *
 * --pause-us 0: the next update as soon as the window allows. --step PX: the rectangles move right
 * by so many pixels with every update and begin anew at the left; then each buffer is brought up to
 * date, as a picture that is kept needs it. Negative CPU numbers: anywhere.
 *
 * Prints one line of JSON (updates, nanoseconds, CPU of both, in ns) and then, for each update of
 * the measured time, three native 64-bit integers: CLOCK_MONOTONIC in ns when it was begun, when it
 * was published, and when the reader had copied it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RECTS = 64, MAX_WINDOW = 64, ANSWER = 22, RECEIVE = 1 << 16, MAX_UPDATES = 1 << 21 };

struct rect {
    int32_t top, left, bottom, right;
};

struct message {
    uint16_t number;
    uint32_t size;
    uint32_t surface, segment;
    uint64_t offset, serial, published;
    uint32_t flags, reserved, count, reserved2;
    struct rect rects[MAX_RECTS];
} __attribute__((packed));

struct times {
    int64_t begun, published, seen;
};

static struct {
    long width, height, window, pause_us, writer_cpu, reader_cpu, step, count;
    double seconds, warmup;
    int fill;
    struct rect rects[MAX_RECTS];
} job = {1920, 1080, 1, 0, -1, -1, 0, 0, 1.0, 0.1, 0, {{0, 0, 0, 0}}};

static size_t stride, buffer_size;
static struct times *times; /* shared by both processes; each writes its own columns */

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, errno ? strerror(errno) : "wrong");
    exit(1);
}

static int64_t now(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t)) die("clock_gettime");
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pin(long cpu)
{
    cpu_set_t set;
    if (cpu < 0) return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set)) die("sched_setaffinity");
}

static void *map(size_t size, int protection, int flags, int fd)
{
    void *memory = mmap(NULL, size, protection, flags | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) die("mmap");
    return memory;
}

static struct rect rect_of(int64_t update, long i)
{
    struct rect r = job.rects[i];
    if (job.step) {
        int32_t wide = r.right - r.left;
        r.left = (int32_t)((r.left + update * job.step) % (job.width - wide + 1));
        r.right = r.left + wide;
    }
    return r;
}

static void copy(char *to, const char *from, struct rect r)
{
    size_t size = (size_t)(r.right - r.left) * 4, at = (size_t)r.top * stride + (size_t)r.left * 4;
    if (size == stride) {
        memcpy(to + at, from + at, stride * (size_t)(r.bottom - r.top));
        return;
    }
    for (int32_t y = r.top; y < r.bottom; y++, at += stride) memcpy(to + at, from + at, size);
}

static void fill(char *to, int value, struct rect r)
{
    size_t size = (size_t)(r.right - r.left) * 4, at = (size_t)r.top * stride + (size_t)r.left * 4;
    if (size == stride) {
        memset(to + at, value, stride * (size_t)(r.bottom - r.top));
        return;
    }
    for (int32_t y = r.top; y < r.bottom; y++, at += stride) memset(to + at, value, size);
}

static void send_all(int sock, const void *data, size_t size)
{
    const char *at = data;
    while (size) {
        ssize_t sent = send(sock, at, size, MSG_NOSIGNAL);
        if (sent < 0) die("send");
        at += sent;
        size -= (size_t)sent;
    }
}

/* The reader: until the writer closes its end. */
static void look(int sock, int fd)
{
    static char in[RECEIVE], out[ANSWER];
    struct message head;
    size_t have = 0;
    pin(job.reader_cpu);
    const char *shared =
        map(buffer_size * (size_t)(job.window + 1), PROT_READ, MAP_SHARED, fd);
    char *mirror = map(buffer_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (;;) {
        ssize_t got = recv(sock, in + have, sizeof in - have, 0);
        if (got < 0) die("recv");
        if (!got) return;
        have += (size_t)got;
        size_t at = 0;
        const size_t fixed = sizeof head - sizeof head.rects;
        while (have - at >= fixed) {
            memcpy(&head, in + at, fixed);
            if (have - at < 6 + head.size) break;
            memcpy(head.rects, in + at + fixed, head.count * sizeof(struct rect));
            for (uint32_t i = 0; i < head.count; i++)
                copy(mirror, shared + head.offset, head.rects[i]);
            times[head.serial].seen = now(CLOCK_MONOTONIC);
            memcpy(out + 14, &head.serial, 8);
            send_all(sock, out, ANSWER);
            at += 6 + head.size;
        }
        memmove(in, in + at, have - at);
        have -= at;

    }
}

static size_t answers(int sock, int flags)
{
    static char in[RECEIVE];
    static size_t have;
    ssize_t got = recv(sock, in, sizeof in, flags);
    if (got <= 0) die("recv");
    have += (size_t)got;
    size_t whole = have / ANSWER;
    have %= ANSWER;
    return whole;
}

/* The writer: returns how many updates were measured, from *first on. */
static int64_t publish(int sock, int fd, pid_t reader, int64_t *first, int64_t cpu[2],
                       int64_t *took)
{
    static struct message message;
    clockid_t theirs;
    pin(job.writer_cpu);
    size_t buffers = (size_t)job.window + 1;
    char *shared = map(buffer_size * buffers, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    char *picture = map(buffer_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    struct timespec pause = {0, job.pause_us * 1000};
    int64_t update = 0, start = now(CLOCK_MONOTONIC), begin = 0;
    int64_t from = start + (int64_t)(job.warmup * 1e9), end = from + (int64_t)(job.seconds * 1e9);
    size_t out = 0;
    if (clock_getcpuclockid(reader, &theirs)) die("clock_getcpuclockid");
    memset(picture, 0x55, buffer_size);
    message.number = 461;
    message.size = (uint32_t)(48 + sizeof(struct rect) * (size_t)job.count);
    message.count = (uint32_t)job.count;
    for (;;) {
        if (job.pause_us) nanosleep(&pause, NULL);
        while (out == (size_t)job.window) out -= answers(sock, 0);
        int64_t begun = now(CLOCK_MONOTONIC);
        if (!begin && begun >= from) {
            begin = begun;
            *first = update;
            cpu[0] = now(CLOCK_PROCESS_CPUTIME_ID);
            cpu[1] = now(theirs);
        }
        if (begun >= end || update == MAX_UPDATES) {
            cpu[0] = now(CLOCK_PROCESS_CPUTIME_ID) - cpu[0];
            cpu[1] = now(theirs) - cpu[1];
            *took = begun - begin;
            break;
        }
        char *buffer = shared + (size_t)update % buffers * buffer_size;
        if (job.step) {
            const char *last = shared + (size_t)(update + job.window) % buffers * buffer_size;
            for (int64_t u = update - job.window; u < update; u++)
                for (long i = 0; u >= 0 && i < job.count; i++) copy(buffer, last, rect_of(u, i));
        }
        for (long i = 0; i < job.count; i++) {
            message.rects[i] = rect_of(update, i);
            if (job.fill) fill(buffer, (int)update & 0xff, message.rects[i]);
            else copy(buffer, picture, message.rects[i]);
        }
        message.offset = (uint64_t)(buffer - shared);
        message.serial = (uint64_t)update;
        times[update].begun = begun;
        times[update].published = now(CLOCK_MONOTONIC);
        message.published = (uint64_t)times[update].published;
        send_all(sock, &message, 6 + message.size);
        out++;
        update++;
    }
    while (out) out -= answers(sock, 0);
    return update - *first;
}

static void options(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        char *name = argv[i];
        if (strncmp(name, "--", 2)) {
            struct rect *r = &job.rects[job.count];
            if (job.count == MAX_RECTS) die("too many rectangles");
            if (sscanf(name, "%d,%d,%d,%d", &r->top, &r->left, &r->bottom, &r->right) != 4 ||
                r->top < 0 || r->left < 0 || r->bottom > job.height || r->right > job.width ||
                r->top >= r->bottom || r->left >= r->right)
                die(name);
            job.count++;
            continue;
        }
        char *value = i + 1 < argc ? argv[++i] : "";
        if (!strcmp(name, "--width")) job.width = atol(value);
        else if (!strcmp(name, "--height")) job.height = atol(value);
        else if (!strcmp(name, "--window")) job.window = atol(value);
        else if (!strcmp(name, "--pause-us")) job.pause_us = atol(value);
        else if (!strcmp(name, "--seconds")) job.seconds = atof(value);
        else if (!strcmp(name, "--warmup")) job.warmup = atof(value);
        else if (!strcmp(name, "--writer-cpu")) job.writer_cpu = atol(value);
        else if (!strcmp(name, "--reader-cpu")) job.reader_cpu = atol(value);
        else if (!strcmp(name, "--step")) job.step = atol(value);
        else if (!strcmp(name, "--paint")) job.fill = !strcmp(value, "fill");
        else die(name);
    }
    if (!job.count || job.window < 1 || job.window > MAX_WINDOW || job.width < 1 || job.height < 1)
        die("options");
}

int main(int argc, char **argv)
{
    int socks[2], fd, status;
    int64_t first = 0, cpu[2] = {0, 0}, took = 0;
    options(argc, argv);
    stride = (size_t)job.width * 4;
    buffer_size = (stride * (size_t)job.height + 4095) / 4096 * 4096;
    times = mmap(NULL, sizeof *times * (MAX_UPDATES + 1), PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (times == MAP_FAILED) die("mmap");
    if ((fd = memfd_create("floor", MFD_CLOEXEC)) < 0) die("memfd_create");
    if ((errno = posix_fallocate(fd, 0, (off_t)(buffer_size * (size_t)(job.window + 1)))))
        die("posix_fallocate");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks)) die("socketpair");
    pid_t reader = fork();
    if (reader < 0) die("fork");
    if (!reader) {
        close(socks[0]);
        look(socks[1], fd);
        _exit(0);
    }
    close(socks[1]);
    int64_t updates = publish(socks[0], fd, reader, &first, cpu, &took);
    close(socks[0]);
    if (waitpid(reader, &status, 0) != reader || status) die("reader");
    printf("{\"updates\": %lld, \"took_ns\": %lld, \"writer_cpu_ns\": %lld, "
           "\"reader_cpu_ns\": %lld}\n",
           (long long)updates, (long long)took, (long long)cpu[0], (long long)cpu[1]);
    if (fwrite(times + first, sizeof *times, (size_t)updates, stdout) != (size_t)updates)
        die("stdout");
    return fflush(stdout) ? 1 : 0;
}
