/* Asks the C library for a name as every program does, and prints the addresses in its order. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(argv[argc - 1], NULL, &hints, &found);
    if (error) return fprintf(stderr, "%s: %s\n", argv[argc - 1], gai_strerror(error)), 1;
    for (char text[INET6_ADDRSTRLEN]; found; found = found->ai_next) {
        void *address = found->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
                                                    : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
        puts(inet_ntop(found->ai_family, address, text, sizeof text));
    }
}
