/* A load of DNS questions over UDP, closed (so many under way, no more) or at a fixed rate.
 *
 *     load HOST PORT SECONDS RATE WINDOW SOCKETS QUESTIONS
 *
 * QUESTIONS is a file of requests, each with its length in two octets in front. RATE 0: closed, with WINDOW
 * questions under way over SOCKETS sockets. Else RATE questions a second, whatever the server does, with
 * latencies counted from when a question was due: a server that stalls does not stall its own measurement.
 *
 * One line of JSON says what came of it. A reply counts as good when its id is of a question under way, its
 * question is that one, its rcode is NOERROR and it has an answer. What is not answered in TIMEOUT is lost, also
 * when the answer comes later.
 *
 * It never sleeps: a server that must wake its client pays for that, and how often it must would depend on the
 * client's luck. It wants a core of its own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 32, IDS = 65536, ROOM = 4096, BUCKETS = 64 * 32 };
static const uint64_t TIMEOUT = 250000000; /* ns */

struct question { uint8_t *bytes; uint16_t length; };
struct asked { uint64_t since; uint32_t question; };
struct client {
    int fd;
    uint16_t first, next; /* ids under way lie in [first, next) */
    int under_way;
    struct asked *asked; /* by id; since 0: answered */
};

static struct question *questions;
static uint32_t question_count, cursor;
static uint64_t sent, good, empty, wrong, lost, rcodes[16], histogram[BUCKETS], slowest;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Buckets of a thirty-second of an octave: a percentile is right within 3 %. */
static void note(uint64_t ns) {
    int top = ns < 32 ? 5 : 63 - __builtin_clzll(ns);
    histogram[top * 32 + (int)((ns >> (top - 5)) & 31)]++;
    if (ns > slowest) slowest = ns;
}

static double percentile_us(double share) {
    uint64_t all = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++) all += histogram[i];
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (all && (double)seen >= share * (double)all)
            return (double)((uint64_t)(32 + i % 32) << (i / 32) >> 5) / 1000;
    }
    return 0;
}

static void expire(struct client *c, uint64_t at) {
    while (c->first != c->next) {
        struct asked *one = &c->asked[c->first];
        if (one->since && at - one->since < TIMEOUT) return;
        if (one->since) { lost++; c->under_way--; one->since = 0; }
        c->first++;
    }
}

/* Asks `count` questions that were due at `due`, `gap` ns apart. */
static int ask(struct client *c, int count, uint64_t due, uint64_t gap) {
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH][2];
    static uint16_t ids[BATCH];
    if (count > BATCH) count = BATCH;
    for (int i = 0; i < count; i++) {
        struct question *q = &questions[(cursor + (uint32_t)i) % question_count];
        ids[i] = htons((uint16_t)(c->next + i));
        parts[i][0] = (struct iovec){&ids[i], 2};
        parts[i][1] = (struct iovec){q->bytes + 2, q->length - 2u};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = parts[i], .msg_iovlen = 2};
    }
    int done = sendmmsg(c->fd, messages, (unsigned)count, 0);
    for (int i = 0; i < done; i++) {
        c->asked[c->next] = (struct asked){due + (uint64_t)i * gap, cursor};
        c->next++;
        cursor = (cursor + 1) % question_count;
    }
    if (done > 0) { sent += (uint64_t)done; c->under_way += done; }
    return done > 0 ? done : 0;
}

static int take(struct client *c) {
    static uint8_t room[BATCH][ROOM];
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH];
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){room[i], ROOM};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    int count = recvmmsg(c->fd, messages, BATCH, MSG_DONTWAIT, NULL);
    if (count <= 0) return 0;
    uint64_t at = now();
    for (int i = 0; i < count; i++) {
        uint8_t *reply = room[i];
        struct asked *one = &c->asked[reply[0] << 8 | reply[1]];
        struct question *q = &questions[one->question];
        unsigned end = 12;
        while (end < q->length && q->bytes[end]) end += 1u + q->bytes[end];
        end += 5; /* root, type, class */
        if (!one->since) continue; /* late; it was counted as lost */
        if (messages[i].msg_len < end || !(reply[2] & 0x80)
            || memcmp(reply + 12, q->bytes + 12, end - 12)) { wrong++; continue; }
        note(at > one->since ? at - one->since : 0);
        one->since = 0;
        c->under_way--;
        rcodes[reply[3] & 15]++;
        if ((reply[3] & 15) == 0 && (reply[6] | reply[7])) good++; else empty++;
    }
    return count;
}

int main(int argc, char **argv) {
    if (argc != 8) return fprintf(stderr, "see the head of the source\n"), 2;
    double seconds = atof(argv[3]), rate = atof(argv[4]);
    int window = atoi(argv[5]), count = atoi(argv[6]);

    FILE *file = fopen(argv[7], "rb");
    if (!file) return perror(argv[7]), 1;
    uint8_t head[2];
    while (fread(head, 1, 2, file) == 2) {
        questions = realloc(questions, (question_count + 1) * sizeof *questions);
        uint16_t length = (uint16_t)(head[0] << 8 | head[1]);
        questions[question_count] = (struct question){malloc(length), length};
        if (fread(questions[question_count++].bytes, 1, length, file) != length) return 1;
    }
    fclose(file);

    struct client *clients = calloc((size_t)count, sizeof *clients);
    for (int i = 0; i < count; i++) {
        struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
        inet_pton(AF_INET, argv[1], &server.sin_addr);
        clients[i].fd = socket(AF_INET, SOCK_DGRAM, 0);
        clients[i].asked = calloc(IDS, sizeof *clients[i].asked);
        int size = 1 << 20;
        setsockopt(clients[i].fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        if (connect(clients[i].fd, (struct sockaddr *)&server, sizeof server)) return perror("connect"), 1;
    }

    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), checked = start, at, due_count = 0;
    double gap = rate > 0 ? 1e9 / rate : 0;
    int turn = 0;
    while ((at = now()) < end) {
        if (rate > 0) {
            uint64_t due = (uint64_t)((double)(at - start) / gap);
            while (due_count < due) {
                uint64_t since = start + (uint64_t)((double)due_count * gap);
                int many = due - due_count > BATCH ? BATCH : (int)(due - due_count);
                many = ask(&clients[turn++ % count], many, since, (uint64_t)gap);
                if (!many) break;
                due_count += (uint64_t)many;
            }
        }
        for (int i = 0; i < count; i++) {
            while (take(&clients[i]) == BATCH) {}
            int room = window / count - clients[i].under_way;
            if (rate == 0 && room > 0) ask(&clients[i], room, at, 0);
        }
        if (at - checked > TIMEOUT / 10) {
            for (int i = 0; i < count; i++) expire(&clients[i], at);
            checked = at;
        }
    }
    double took = (double)(now() - start) / 1e9;
    while (now() < end + TIMEOUT) /* what is under way may still be answered */
        for (int i = 0; i < count; i++) take(&clients[i]);
    for (int i = 0; i < count; i++) expire(&clients[i], now() + TIMEOUT);

    printf("{\"sent\": %llu, \"good\": %llu, \"empty\": %llu, \"wrong\": %llu, \"lost\": %llu, \"seconds\": %.4f, "
           "\"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f, \"rcodes\": [",
           (unsigned long long)sent, (unsigned long long)good, (unsigned long long)empty,
           (unsigned long long)wrong, (unsigned long long)lost, took, percentile_us(0.5), percentile_us(0.99),
           percentile_us(0.999), (double)slowest / 1000);
    for (int i = 0; i < 16; i++) printf("%s%llu", i ? ", " : "", (unsigned long long)rcodes[i]);
    puts("]}");
    return 0;
}
