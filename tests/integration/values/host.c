/* What a host may be like, for one process: preloaded, it sets the wall clock by the seconds in the file that HOST_CLOCK_OFFSET names, and
 * with HOST_WITHOUT_IPV6 the kernel knows no IPv6. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  const char *file = getenv("HOST_CLOCK_OFFSET");
  if (clock != CLOCK_REALTIME || result != 0 || !file) return result;
  char text[32] = "";
  int handle = open(file, O_RDONLY | O_CLOEXEC);
  if (handle >= 0) {
    ssize_t length = read(handle, text, sizeof text - 1);
    if (length > 0) now->tv_sec += atoll(text);
    close(handle);
  }
  return result;
}

int socket(int family, int type, int protocol) {
  static int (*real)(int, int, int);
  if (!real) real = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
  if (family == AF_INET6 && getenv("HOST_WITHOUT_IPV6")) {
    errno = EAFNOSUPPORT;
    return -1;
  }
  return real(family, type, protocol);
}
