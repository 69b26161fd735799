/* Preloaded into a process, makes one directory slow, as a network disk is.

   Each write, sync and rename below SLOW_DISK takes SLOW_DISK_MS longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void wait_if(const char *path) {
  const char *slow = getenv("SLOW_DISK"), *ms = getenv("SLOW_DISK_MS");
  if (!slow || !ms || strncmp(path, slow, strlen(slow))) return;
  long n = atol(ms);
  struct timespec t = {n / 1000, n % 1000 * 1000000};
  nanosleep(&t, NULL);
}

static void wait_if_open(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return;
  path[n] = 0;
  wait_if(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  wait_if_open(fd);
  return NEXT(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  wait_if_open(fd);
  return NEXT(writev)(fd, parts, count);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  wait_if_open(fd);
  return NEXT(pwrite64)(fd, data, size, at);
}
int fsync(int fd) {
  wait_if_open(fd);
  return NEXT(fsync)(fd);
}
int fdatasync(int fd) {
  wait_if_open(fd);
  return NEXT(fdatasync)(fd);
}
int rename(const char *from, const char *to) {
  wait_if(from);
  return NEXT(rename)(from, to);
}
