/* The machine's own limit, in C: limit PORT DIRECTORY DURABILITY.
 *
 * What `limit.py` does for uploads, without an interpreter: one blocking loop, one connection at a
 * time; receive 1 MiB, XXH3-128, write, again. No checks of any kind, and its only client is the
 * benchmark's, whose heads it knows: nobody should run it for real.
 *
 * The length of an upload is part of its name, so that nothing need be remembered between requests.
 */
#define _GNU_SOURCE
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { STEP = 1 << 20, HEAD = 1 << 16 };

static unsigned char *buffer;
static const char *directory;
static int sync_last;

static void need(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

/* The number after the name of a header; 0 where there is none. */
static long long number(const char *head, const char *name)
{
    const char *found = strstr(head, name);
    return found ? atoll(found + strlen(name)) : 0;
}

/* Reads a head and leaves the body in the socket; its length, or 0 at the end of the connection. */
static size_t read_head(int peer, char *head)
{
    for (;;) {
        ssize_t seen = recv(peer, head, HEAD - 1, MSG_PEEK);
        if (seen <= 0)
            return 0;
        head[seen] = 0;
        char *end = strstr(head, "\r\n\r\n");
        if (end) {
            size_t length = (size_t)(end + 4 - head);
            need(recv(peer, head, length, 0) == (ssize_t)length, "recv");
            head[length] = 0;
            return length;
        }
        need(seen < HEAD - 1, "the head is too long");
    }
}

static int create(const char *head, char *answer)
{
    static int made;
    char path[4096];
    long long length = number(head, "\r\nUpload-Length: ");
    snprintf(path, sizeof path, "%s/%d-%lld", directory, ++made, length);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    need(fd >= 0, path);
    close(fd);
    return sprintf(answer, "HTTP/1.1 201 Created\r\nLocation: /files/%d-%lld\r\nContent-Length: 0\r\n\r\n", made, length);
}

static int append(int peer, const char *head, char *answer)
{
    char path[4096], name[64];
    long long rest = number(head, "\r\nContent-Length: "), length = 0;
    need(sscanf(head, "PATCH /files/%63[0-9-]", name) == 1, head);
    sscanf(name, "%*d-%lld", &length);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_APPEND);
    need(fd >= 0, path);

    XXH3_state_t *hasher = XXH3_createState();
    XXH3_128bits_reset(hasher);
    while (rest > 0) {
        size_t wanted = rest < STEP ? (size_t)rest : STEP;
        ssize_t count = recv(peer, buffer, wanted, MSG_WAITALL);
        if (count <= 0)
            break;
        XXH3_128bits_update(hasher, buffer, (size_t)count);
        need(write(fd, buffer, (size_t)count) == count, "write");
        rest -= count;
    }
    XXH128_hash_t hash = XXH3_128bits_digest(hasher);
    XXH3_freeState(hasher);
    long long end = lseek(fd, 0, SEEK_END);
    if (sync_last && end == length)
        need(fdatasync(fd) == 0, "fdatasync");
    close(fd);
    /* The hash is told, lest the compiler leave it out. */
    return sprintf(answer, "HTTP/1.1 204 No Content\r\nUpload-Offset: %lld\r\nX-Hash: %016llx%016llx\r\n\r\n", end,
                   (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

static void serve(int peer)
{
    static char head[HEAD], answer[512];
    int on = 1;
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while (read_head(peer, head)) {
        int length = strncmp(head, "POST ", 5) ? append(peer, head, answer) : create(head, answer);
        if (send(peer, answer, (size_t)length, MSG_NOSIGNAL) != length)
            break;
    }
    close(peer);
}

int main(int count, char **arguments)
{
    if (count != 4) {
        fputs("limit PORT DIRECTORY DURABILITY\n", stderr);
        return 2;
    }
    directory = arguments[2];
    sync_last = strcmp(arguments[3], "none") != 0;
    need(posix_memalign((void **)&buffer, 4096, STEP) == 0, "memory");

    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    need(listener >= 0, "socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    need(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    need(listen(listener, 16) == 0, "listen");
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        need(peer >= 0, "accept");
        serve(peer);
    }
}
