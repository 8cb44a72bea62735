/* Joins two TAP devices, each in its own network namespace, and holds every frame for a fixed time.
 *
 *     delay NAMESPACE DEVICE NAMESPACE DEVICE MICROSECONDS
 *
 * For kernels without netem. Frames keep their virtio header (checksum and segmentation left to do), so that
 * 64 KiB segments pass whole: without it the relay, not the shaper, is what limits the rate.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { FRAME = 65536 + 64, HELD = 64 << 20 };

struct frame { struct frame *next; uint64_t due; size_t size; char bytes[]; };
struct lane { int from, to; size_t held; struct frame *first, **last; };

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void fail(const char *what, const char *name) {
  fprintf(stderr, "delay: %s %s: %s\n", what, name, strerror(errno));
  exit(1);
}

static int tap(const char *space, const char *device) {
  char path[256];
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  snprintf(path, sizeof path, "/run/netns/%s", space);
  int at = open(path, O_RDONLY | O_CLOEXEC);
  if (at < 0 || setns(at, CLONE_NEWNET)) fail("entering", path);
  close(at);
  int file = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) fail("opening", "/dev/net/tun");
  strncpy(request.ifr_name, device, IFNAMSIZ - 1);
  if (ioctl(file, TUNSETIFF, &request)) fail("making", device);
  ioctl(file, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
  return file;
}

static void take(struct lane *lane, uint64_t delay) {
  static char buffer[FRAME];
  for (int burst = 0; burst < 64; burst++) {
    ssize_t size = read(lane->from, buffer, sizeof buffer);
    if (size <= 0) return;
    if (lane->held + (size_t)size > HELD) continue; /* a full line drops, as a real one does */
    struct frame *frame = malloc(sizeof *frame + (size_t)size);
    if (!frame) continue;
    *frame = (struct frame){.due = now() + delay, .size = (size_t)size};
    memcpy(frame->bytes, buffer, (size_t)size);
    lane->held += frame->size;
    *lane->last = frame;
    lane->last = &frame->next;
  }
}

static void pass(struct lane *lane) {
  while (lane->first && lane->first->due <= now()) {
    struct frame *frame = lane->first;
    if (write(lane->to, frame->bytes, frame->size) < 0 && errno == EAGAIN) return;
    lane->first = frame->next;
    if (!lane->first) lane->last = &lane->first;
    lane->held -= frame->size;
    free(frame);
  }
}

int main(int count, char **words) {
  if (count != 6) { fprintf(stderr, "delay NAMESPACE DEVICE NAMESPACE DEVICE MICROSECONDS\n"); return 2; }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int a = tap(words[1], words[2]), b = tap(words[3], words[4]);
  uint64_t delay = strtoull(words[5], NULL, 10);
  struct lane lanes[2] = {{.from = a, .to = b}, {.from = b, .to = a}};
  for (int i = 0; i < 2; i++) lanes[i].last = &lanes[i].first;
  puts("ready");
  fflush(stdout);
  for (;;) {
    uint64_t soonest = UINT64_MAX, time = now();
    for (int i = 0; i < 2; i++)
      if (lanes[i].first && lanes[i].first->due < soonest) soonest = lanes[i].first->due;
    uint64_t wait = soonest == UINT64_MAX ? 1000000 : soonest > time ? soonest - time : 0;
    struct timespec limit = {(time_t)(wait / 1000000), (long)(wait % 1000000) * 1000};
    struct pollfd ends[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
    ppoll(ends, 2, &limit, NULL);
    for (int i = 0; i < 2; i++) { take(&lanes[i], delay); pass(&lanes[i]); }
  }
}
