/* The floor: an epoll loop that parses nothing but the end of a head and answers with what it has ready.
 * A path that begins with /1m is sent with sendfile(2) from a memfd, others from memory. Usage: bare PORT
 * As a supervisor's worker (benches/respawn) it takes LISTEN_FDS instead of a port, and feeds WATCHDOG_USEC. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char small[256], middle[10240 + 256];
static int small_len, middle_len, big;
static off_t left[65536]; /* of an answer of 1 MB, by fd */
static char closing[65536];

static int head(char *to, int body) {
  return sprintf(to, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", body);
}

static void serve(int fd) {
  char in[8192];
  for (;;) {
    while (left[fd] > 0) {
      off_t at = (1 << 20) - left[fd];
      ssize_t n = sendfile(fd, big, &at, left[fd]);
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) {
        close(fd);
        return;
      }
      left[fd] -= n;
    }
    ssize_t n = closing[fd] ? 0 : recv(fd, in, sizeof in - 1, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      close(fd);
      return;
    }
    in[n] = 0;
    if (!strstr(in, "\r\n\r\n")) continue; /* the load sends whole heads */
    closing[fd] = strcasestr(in, "connection: close") != NULL;
    if (!strncmp(in, "GET /1m", 7)) {
      char h[256];
      send(fd, h, head(h, 1 << 20), MSG_MORE);
      left[fd] = 1 << 20;
    } else if (!strncmp(in, "GET /10k", 8)) {
      send(fd, middle, middle_len, 0);
    } else {
      send(fd, small, small_len, 0);
    }
    if (!closing[fd] && !left[fd] && n < (ssize_t)sizeof in - 1) return;
  }
}

static int listener(const char *port) {
  if (getenv("LISTEN_FDS")) {
    fcntl(3, F_SETFL, O_NONBLOCK);
    return 3;
  }
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  int one = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
  if (bind(l, (struct sockaddr *)&a, sizeof a) || listen(l, 4096)) perror("bind"), exit(1);
  return l;
}

/* sd_notify(3) */
static void notify(const char *what) {
  const char *path = getenv("NOTIFY_SOCKET");
  if (!path) return;
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  strncpy(to.sun_path, path, sizeof to.sun_path - 1);
  if (*path == '@') to.sun_path[0] = 0;
  int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sendto(s, what, strlen(what), 0, (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + strlen(path));
  close(s);
}

/* Says that it works, twice in a watchdog's time; how many milliseconds it may sleep. */
static int feed(void) {
  static struct timespec fed;
  struct timespec now;
  static int half;
  if (half == 0) half = getenv("WATCHDOG_USEC") ? atoll(getenv("WATCHDOG_USEC")) / 2000 : -1;
  if (half < 0) return half;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if ((now.tv_sec - fed.tv_sec) * 1000 + (now.tv_nsec - fed.tv_nsec) / 1000000 >= half) {
    notify("WATCHDOG=1");
    fed = now;
  }
  return half;
}

int main(int argc, char **argv) {
  int one = 1, l = listener(argv[argc - 1]), ep = epoll_create1(0);
  signal(SIGPIPE, SIG_IGN);
  small_len = head(small, 100), middle_len = head(middle, 10240);
  memset(small + small_len, 'x', 100), small_len += 100;
  memset(middle + middle_len, 'x', 10240), middle_len += 10240;
  big = memfd_create("big", 0);
  if (ftruncate(big, 1 << 20)) return 1;
  struct epoll_event e = {.events = EPOLLIN, .data.fd = l}, list[256];
  epoll_ctl(ep, EPOLL_CTL_ADD, l, &e);
  notify("READY=1");
  for (;;) {
    int n = epoll_wait(ep, list, 256, feed());
    for (int i = 0; i < n; i++) {
      int fd = list[i].data.fd;
      if (fd != l) {
        serve(fd);
        continue;
      }
      while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= 65536) {
          close(fd);
          continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        left[fd] = closing[fd] = 0;
        e = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
      }
    }
  }
}
