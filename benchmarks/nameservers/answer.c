/* Answers every question with one address, one system call in and one out: about what the kernel alone takes.
 *
 *     answer PORT
 *
 * It looks at nothing but where the question ends. As an upstream it has an answer for any name, good for an hour.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* A pointer to the question's name, A, IN, 3600 s, four octets: 192.0.2.1 */
static const unsigned char RECORD[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 1};

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "see the head of the source\n"), 2;
    int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 4 << 20;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&here, sizeof here)) return perror("bind"), 1;
    for (;;) {
        unsigned char packet[4096 + sizeof RECORD];
        struct sockaddr_in client;
        socklen_t length = sizeof client;
        ssize_t got = recvfrom(fd, packet, 4096, 0, (struct sockaddr *)&client, &length), end = 12;
        while (end < got && packet[end]) end += 1 + packet[end];
        if ((end += 5) > got) continue; /* root, type, class */
        static const unsigned char counts[] = {0, 1, 0, 1, 0, 0, 0, 0};
        packet[2] |= 0x80;
        packet[3] = 0x80;
        memcpy(packet + 4, counts, sizeof counts);
        memcpy(packet + end, RECORD, sizeof RECORD);
        sendto(fd, packet, (size_t)end + sizeof RECORD, 0, (struct sockaddr *)&client, length);
    }
}
