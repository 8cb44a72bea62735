// One fork and one join for each call, and memory that each thread keeps.
//
// Who waits looks for some microseconds and then sleeps. Layers follow each other closely, and to wake a sleeper
// takes as long as half a layer; but on a machine with more work than cores a thread that looks for long takes the
// core from the one it waits for. A worker that last ran where the caller runs now is sent elsewhere: threads that
// sleep often are not spread out by every scheduler, and it would come when all is done. Tasks are handed out by a counter; which thread does which changes nothing in
// the result.
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include "kernel.h"

namespace gracile {
namespace {

struct Buffer {
    float* data = nullptr;
    std::size_t size = 0;
    ~Buffer() { std::free(data); }
};

constexpr int looks = 1000;  // 20 to 50 microseconds

template <class Seen>
void look(Seen seen) {
    for (int i = 0; i < looks && !seen(); ++i) {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
}

#if defined(__linux__)
int here() { return sched_getcpu(); }

// Let a thread run on all processors that this one may use, but not on this one.
void send_away(std::thread& thread, int from) {
    cpu_set_t allowed;
    if (from < 0 || from >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    CPU_CLR(static_cast<std::size_t>(from), &allowed);
    if (CPU_COUNT(&allowed) > 0) pthread_setaffinity_np(thread.native_handle(), sizeof allowed, &allowed);
}
#else
int here() { return -1; }
void send_away(std::thread&, int) {}
#endif

struct Job {
    void (*task)(void*, int);
    void* context;
    int tasks;
    std::atomic<int> next{0};
    std::atomic<bool> failed{false};
};

void work(Job& job) {
    try {
        for (int i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.tasks;) job.task(job.context, i);
    } catch (const std::bad_alloc&) {  // all that a task can throw; told by the thread that asked
        job.failed = true;
    }
}

class Pool {
   public:
    ~Pool() {
        {
            std::lock_guard<std::mutex> hold(lock_);
            over_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.thread.join();
    }

    void run(Job& job, int threads) {
        std::lock_guard<std::mutex> turn(turn_);  // one call at a time has the workers
        {
            std::lock_guard<std::mutex> hold(lock_);
            while (static_cast<int>(workers_.size()) < threads - 1) {
                const int number = static_cast<int>(workers_.size());
                Worker& added = workers_.emplace_back();
                added.thread = std::thread([this, &added, number] { loop(added, number); });
            }
            const int mine = here();
            for (int i = 0; i < threads - 1; ++i)
                if (mine >= 0 && workers_[i].last == mine) send_away(workers_[i].thread, mine);
            job_ = &job, wanted_ = threads - 1, ++call_;
        }
        wake_.notify_all();
        work(job);
        {
            std::lock_guard<std::mutex> hold(lock_);
            job_ = nullptr;  // who has not come yet need not come
        }
        look([this] { return busy_ == 0; });
        std::unique_lock<std::mutex> hold(lock_);
        idle_.wait(hold, [this] { return busy_ == 0; });
    }

   private:
    struct Worker {
        std::thread thread;
        std::atomic<int> last{-1};  // processor that it ran on
    };

    void loop(Worker& self, int number) {
        for (std::uint64_t seen = 0;;) {
            look([&] { return call_ != seen; });
            self.last = here();
            std::unique_lock<std::mutex> hold(lock_);
            wake_.wait(hold, [&] { return over_ || (job_ && call_ != seen && number < wanted_); });
            if (over_) return;
            seen = call_;
            Job& job = *job_;
            ++busy_;
            hold.unlock();
            work(job);
            hold.lock();
            if (--busy_ == 0) idle_.notify_one();
        }
    }

    std::mutex turn_, lock_;
    std::condition_variable wake_, idle_;
    std::deque<Worker> workers_;  // which do not move
    Job* job_ = nullptr;
    int wanted_ = 0;
    std::atomic<int> busy_{0};  // written under the lock, looked at without
    std::atomic<std::uint64_t> call_{0};
    bool over_ = false;
};

Pool& pool() {
    static Pool* const one = new Pool;  // never destroyed: threads may outlive the interpreter's own end
    return *one;
}

}  // namespace

float* scratch(std::size_t floats) {
    thread_local Buffer own;
    if (own.size < floats) {
        const std::size_t bytes = (floats * sizeof(float) + 4095) / 4096 * 4096;
        std::free(own.data);
        own.size = 0;
        own.data = static_cast<float*>(std::aligned_alloc(4096, bytes));
        if (!own.data) throw std::bad_alloc();
        own.size = bytes / sizeof(float);
    }
    return own.data;
}

void parallel(int tasks, int threads, void (*task)(void*, int), void* context) {
    if (threads > tasks) threads = tasks;
    if (threads <= 1) {
        for (int i = 0; i < tasks; ++i) task(context, i);
        return;
    }
    Job job{task, context, tasks};
    pool().run(job, threads);
    if (job.failed) throw std::bad_alloc();
}

}  // namespace gracile
