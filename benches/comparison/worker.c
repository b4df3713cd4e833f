/* What the supervisors of this comparison run: says on a datagram socket that it has begun, and when; then waits to be
   killed, or answers connections.
   ADDR: the socket. ESCAPE: leave a descendant in a session of its own. FD, argv[1] or LISTEN_FDS: a listening socket that
   was inherited; PORT: one of its own. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  strncpy(to.sun_path, getenv("ADDR"), sizeof to.sun_path - 1);
  char text[100];
  int n = snprintf(text, sizeof text, "%s %d %lld", what, getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
  int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sendto(s, text, n, 0, (struct sockaddr *)&to, sizeof to);
  close(s);
}

static void escape(void) {
  if (fork() == 0) {
    setsid();
    if (fork() == 0) {
      say("escaped");
      for (;;) pause();
    }
    _exit(0);
  }
}

static int listener(int argc, char **argv) {
  /* s6 gives its service's name */
  if (argc > 1 && argv[1][0] >= '0' && argv[1][0] <= '9') return atoi(argv[1]);
  if (getenv("FD")) return atoi(getenv("FD"));
  if (getenv("LISTEN_FDS")) return 3;
  if (!getenv("PORT")) return -1;
  int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(getenv("PORT")))};
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 1024) < 0) {
    perror("worker: bind");
    exit(1);
  }
  return s;
}

int main(int argc, char **argv) {
  say("start");
  if (getenv("ESCAPE")) escape();
  int s = listener(argc, argv);
  if (s >= 0) say("listens");
  for (;;) {
    if (s < 0) {
      pause();
      continue;
    }
    struct sockaddr_in from;
    socklen_t len = sizeof from;
    int c = accept(s, (struct sockaddr *)&from, &len);
    if (c < 0) {
      /* some hand over a socket that doesn't block */
      usleep(200);
      continue;
    }
    (void)!write(c, "ok\n", 3);
    close(c);
  }
}
