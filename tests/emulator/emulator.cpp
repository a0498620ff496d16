// The machine behind emulator.h: fibers, their turns, barriers, and reports of what a GPU would leave undefined.
//
// One fiber a CUDA thread, all on one OS thread. A fiber runs until it must wait; then the others of its round get
// their turns, in an order drawn from the seed (0: in order of thread index). Blocks run one at a time, in an order
// drawn as well; blocks of a cluster together, those of a cooperative launch all together. Shared memory starts as NaN,
// and so does the target of a copy_async until the wait that ends it. This file is compiled without sanitizers' checks,
// since it copies what kernels own; it tells them of its fibers and of the order that barriers make.
//
// Reported: a barrier that some threads never reach (exited, or waiting elsewhere), lanes of a warp that disagree,
// blocks that wait for blocks which are not resident.
#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>
#ifdef EMULATOR_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
#define RELEASE(address) __tsan_release(address)
#define ACQUIRE(address) __tsan_acquire(address)
#else
#define RELEASE(address) (void)(address)
#define ACQUIRE(address) (void)(address)
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

using namespace emulator;

namespace {
#ifdef EMULATOR_TSAN
constexpr std::size_t STACK = 64 * 1024;
#else
constexpr std::size_t STACK = 256 * 1024;
#endif
constexpr int LANES = 32;
constexpr std::size_t MESSAGE = 560;
constexpr std::size_t SHARED_ARRAYS = 15, ARENA = 64 * 1024;  // static shared arrays of a kernel, and all their bytes

struct Block;
struct Warp;
enum class State { ready, barrier, warp, cluster, done };
enum class Operation { none, barrier, exchange, mma };

#ifdef __x86_64__
using Context = void*;  // the stack pointer; registers are on the stack
#else
using Context = ucontext_t;
#endif

// What a thread runs on; made once, and used again by later ones.
struct Fiber {
    char* stack = nullptr;
#ifdef EMULATOR_TSAN
    void* identity = nullptr;  // for ThreadSanitizer
    unsigned long launch = 0;  // that it last belonged to
#endif
};
struct Thread {
    Place place;
    Context context;
    Fiber fiber;
    Block* block = nullptr;
    Warp* warp = nullptr;
    State state = State::ready;
    int lane = 0, barrier = 0;
    bool paused = false;
    std::vector<Copy> copies;  // under way
    std::vector<int> groups;   // of how many copies, the oldest first
    int open = 0;              // copies in no group yet
    std::vector<Copy> landed;
#ifdef EMULATOR_ASAN
    void* fake_stack = nullptr;
#endif
};
struct Warp {
    Operation operation = Operation::none;
    int arrived = 0, size = 0, lanes = 0;
    unsigned turn = 0;
    alignas(16) unsigned char given[2][LANES][32];
    float sums[2][LANES][4];
    char token[2];
};
struct Barrier {
    int arrived = 0, threads = 0;
    unsigned turn = 0;
    char token[2];
};
struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Barrier barriers[16];
    void* dynamic_memory = nullptr;
    void* static_memory[SHARED_ARRAYS] = {};  // by the launch's number of a shared array
    char* arena = nullptr;                    // ThreadSanitizer takes malloc for a write of the thread that calls it
    std::size_t used = 0;
    struct Cluster* cluster = nullptr;
    unsigned rank = 0;
};
struct Cluster {
    std::vector<Block*> blocks;
    unsigned arrived = 0, turn = 0;
    std::size_t threads = 0;
    char token[2];
};
// Blocks that are resident together.
struct Wave {
    std::vector<Block> blocks;
    std::vector<Cluster> clusters;
};
struct SharedArray {
    const void* key;
    std::size_t bytes;
};

void (*entry)(void**);
void** arguments;
std::string message;
std::vector<Thread*> ready;
std::deque<Fiber> fibers;  // that no thread runs on
std::vector<SharedArray> shared_arrays;
std::size_t dynamic_bytes, alive;
unsigned long progress;  // counts what could let a waiting block go on
Thread* running;
Context scheduler;
char begin_token, end_token;
#ifdef EMULATOR_TSAN
void* scheduler_fiber;
unsigned long launch;        // number of the launch under way
std::size_t identities = 0;  // made so far
constexpr std::size_t IDENTITIES = 1500;  // at a megabyte each; more only if they run at a time, up to 8128
#endif
#ifdef EMULATOR_ASAN
void* scheduler_fake_stack;
const void* scheduler_stack;
std::size_t scheduler_stack_size;
#endif

#ifdef __x86_64__
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
void swap(Context& from, Context& to) { emulator_switch(&from, to); }
void prepare(Context& context, char* stack, void (*function)()) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;  // where the function would return to, aligned as a call leaves it
    *--top = reinterpret_cast<void*>(function);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context = top;
}
#else
void swap(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& context, char* stack, void (*function)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, function, 0);
}
#endif

// sanitizers have their own memcpy and memset, which would take these for accesses of a kernel
void copy_bytes(void* to, const void* from, std::size_t bytes) {
    volatile unsigned char* const target = static_cast<volatile unsigned char*>(to);
    for (std::size_t i = 0; i < bytes; ++i) target[i] = static_cast<const unsigned char*>(from)[i];
}
void poison(void* to, std::size_t bytes) {
    volatile unsigned char* const target = static_cast<volatile unsigned char*>(to);
    for (std::size_t i = 0; i < bytes; ++i) target[i] = 0xff;
}

void to_scheduler(bool last = false) {
    Thread* const self = running;
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &self->fake_stack, scheduler_stack, scheduler_stack_size);
#endif
    (void)last;
#ifdef EMULATOR_TSAN
    __tsan_switch_to_fiber(scheduler_fiber, __tsan_switch_to_fiber_no_sync);
#endif
    swap(self->context, scheduler);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

// Ends the launch with a report; the fibers are left where they are.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
    char text[MESSAGE - 160];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    if (message.empty()) {
        const Place& at = running->place;
        char where[160];
        std::snprintf(where, sizeof where, " (block %u,%u,%u thread %u,%u,%u)", at.block.x, at.block.y, at.block.z,
                      at.thread.x, at.thread.y, at.thread.z);
        message.append(text).append(where);
    }
    to_scheduler();
    std::abort();
}

void first_function() {
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    ACQUIRE(&begin_token);
    entry(arguments);
    RELEASE(&end_token);
    running->state = State::done;
    ++progress;
    --alive;
    to_scheduler(true);
    std::abort();
}

bool fiber_is_at_hand() {
    if (fibers.empty()) return false;
#ifdef EMULATOR_TSAN
    // What one identity does is in order for ThreadSanitizer. Were it to stand for threads of two blocks of a launch,
    // races between these would go unseen; so each has its own, as long as there are any.
    return fibers.front().launch != launch || identities >= IDENTITIES;
#else
    return true;
#endif
}

// Gives `thread` a stack; false if there is no memory for one.
bool start(Thread& thread) {
    Fiber& fiber = thread.fiber;
    if (fiber_is_at_hand()) {
        fiber = fibers.front();
        fibers.pop_front();
    } else {
        void* const memory =
            mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return false;
        fiber.stack = static_cast<char*>(memory);
#ifdef EMULATOR_TSAN
        fiber.identity = __tsan_create_fiber(0);
        ++identities;
#endif
    }
#ifdef EMULATOR_TSAN
    fiber.launch = launch;
#endif
    prepare(thread.context, fiber.stack, first_function);
    return true;
}

// Keeps the fiber of a thread that has ended. The last one used comes first again, while its stack is in the cache;
// for ThreadSanitizer the one that was used longest ago.
void end(Thread& thread) {
#ifdef EMULATOR_TSAN
    fibers.push_back(thread.fiber);
#else
    fibers.push_front(thread.fiber);
#endif
    thread.fiber = Fiber();
}

// Frees the fiber of a thread that was left in the middle.
void abandon(Thread& thread) {
    if (thread.fiber.stack == nullptr) return;
    munmap(thread.fiber.stack, STACK);
#ifdef EMULATOR_TSAN
    __tsan_destroy_fiber(thread.fiber.identity);
    --identities;
#endif
}

void resume(Thread* thread) {
    running = thread;
    emulator_place = &thread->place;
    if (thread->fiber.stack == nullptr && !start(*thread)) {
        message = "no memory for the stack of another thread";
        return;
    }
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, thread->fiber.stack, STACK);
#endif
#ifdef EMULATOR_TSAN
    __tsan_switch_to_fiber(thread->fiber.identity, __tsan_switch_to_fiber_no_sync);
#endif
    swap(scheduler, thread->context);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
    if (thread->state == State::done) end(*thread);
}

void wake(Thread& thread) {
    thread.state = State::ready;
    ++progress;
    ready.push_back(&thread);
}

// Waits for all lanes of the warp; gives the half of its buffers that this operation uses.
template <class Last>
unsigned warp_operation(Operation operation, int size, Last last) {
    Warp& warp = *running->warp;
    if (warp.lanes != LANES) fail("an operation of whole warps in a warp of %d threads", warp.lanes);
    if (warp.arrived && (warp.operation != operation || warp.size != size))
        fail("lanes of a warp disagree: some are at another barrier, shuffle or mma");
    const unsigned half = warp.turn & 1;
    warp.operation = operation;
    warp.size = size;
    if (++warp.arrived == LANES) {
        warp.arrived = 0;
        ++warp.turn;
        last(warp, half);
        Thread* const lanes = running - running->lane;
        for (Thread* other = lanes; other < lanes + LANES; ++other)
            if (other != running) wake(*other);
    } else {
        running->state = State::warp;
        to_scheduler();
    }
    return half;
}
void nothing(Warp&, unsigned) {}

float number(const Warp& warp, unsigned half, int lane, int word, int high, Numbers numbers) {
    unsigned bits;
    std::memcpy(&bits, warp.given[half][lane] + 4 * word, 4);
    if (numbers == Numbers::tf32) return as_float(bits & ~0x1fffu);  // the hardware reads no more
    const unsigned short part = high ? bits >> 16 : bits & 0xffff;
    if (numbers == Numbers::bf16) return as_float(static_cast<unsigned>(part) << 16);
    __half_raw raw;
    raw.x = part;
    return __half2float(__half(raw));
}

// D = A·B of one warp, in the layouts that device.cuh prints; words 0-3 of a lane are a, 4-5 are b.
void multiply(Warp& warp, unsigned half, Numbers numbers) {
    const int depth = numbers == Numbers::tf32 ? 8 : 16, half_depth = depth / 2, packed = depth / 8;
    float a[16][16], b[16][8];
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < depth; ++k) {
            const int inner = k % half_depth;
            a[row][k] = number(warp, half, row % 8 * 4 + inner / packed, row / 8 + k / half_depth * 2,
                               inner % packed, numbers);
        }
    for (int column = 0; column < 8; ++column)
        for (int k = 0; k < depth; ++k) {
            const int inner = k % half_depth;
            b[k][column] = number(warp, half, column * 4 + inner / packed, 4 + k / half_depth, inner % packed, numbers);
        }
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
            warp.sums[half][lane][i] = sum;
        }
}

void* allocate_shared(std::size_t bytes) {
    void* const memory = std::malloc(bytes ? bytes : 1);
    poison(memory, bytes);
    return memory;
}

void* static_shared(Block& block, std::size_t index) {
    if (block.static_memory[index] == nullptr) {
        const std::size_t bytes = shared_arrays[index].bytes;
#ifdef EMULATOR_TSAN
        block.static_memory[index] = block.arena + block.used;
        block.used += (bytes + 15) / 16 * 16;
        if (block.used > ARENA) fail("over %zu bytes of static shared memory", ARENA);
#else
        block.static_memory[index] = allocate_shared(bytes);  // each by itself, so that its bounds are watched
#endif
    }
    return block.static_memory[index];
}

std::string stuck(const std::vector<Block>& blocks) {
    int counts[5] = {};
    const Thread* example = nullptr;
    for (const Block& block : blocks)
        for (const Thread& thread : block.threads) {
            ++counts[static_cast<int>(thread.state)];
            if (thread.state != State::done && example == nullptr) example = &thread;
        }
    char text[400];
    std::snprintf(text, sizeof text,
                  "deadlock: %d threads wait at a block barrier, %d in a warp, %d at a cluster barrier, "
                  "%d have exited; block %u,%u,%u thread %u waits",
                  counts[1], counts[2], counts[3], counts[4], example->place.block.x, example->place.block.y,
                  example->place.block.z, example->place.thread.x);
    return text;
}

void run(std::vector<Block>& blocks, std::mt19937& random, bool shuffled) {
    alive = blocks.size() * blocks[0].threads.size();
    std::vector<Thread*> turns;
    turns.reserve(alive);  // here, not in a fiber: ThreadSanitizer watches which thread allocates
    ready.reserve(alive);
    ready.clear();
    for (Block& block : blocks)
        for (Thread& thread : block.threads) ready.push_back(&thread);
    int idle = 0;
    while (message.empty() && alive) {
        turns.swap(ready);
        ready.clear();
        if (turns.empty()) {
            message = stuck(blocks);
            return;
        }
        if (shuffled) std::shuffle(turns.begin(), turns.end(), random);
        const unsigned long before = progress;
        bool all_paused = true;
        for (Thread* thread : turns) {
            thread->paused = false;
            resume(thread);
            if (!message.empty()) return;
            all_paused = all_paused && thread->paused;
        }
        idle = all_paused && progress == before ? idle + 1 : 0;
        if (idle > 2) {
            char text[200];
            std::snprintf(text, sizeof text,
                          "deadlock: every thread polls memory that none will write; %zu blocks are resident",
                          blocks.size());
            message = text;
        }
    }
}

// Makes the `count` blocks from number `first`.
void lay_out(Wave& wave, unsigned first, unsigned count, unsigned cluster, dim3 grid, dim3 block) {
    const unsigned threads = block.x * block.y * block.z;
    wave.blocks.resize(count);
    wave.clusters.resize(count / cluster);
    for (unsigned i = 0; i < count; ++i) {
        Block& own = wave.blocks[i];
        const unsigned number = first + i;
        own.threads.resize(threads);
        own.warps.resize((threads + LANES - 1) / LANES);
        own.cluster = &wave.clusters[i / cluster];
        own.rank = i % cluster;
        own.cluster->blocks.push_back(&own);
        own.cluster->threads += threads;
        if (dynamic_bytes) own.dynamic_memory = allocate_shared(dynamic_bytes);
#ifdef EMULATOR_TSAN
        own.arena = static_cast<char*>(allocate_shared(ARENA));
#endif
        for (unsigned t = 0; t < threads; ++t) {
            Thread& thread = own.threads[t];
            thread.place = {{t % block.x, t / block.x % block.y, t / (block.x * block.y)},
                            {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)},
                            block,
                            grid};
            thread.block = &own;
            thread.warp = &own.warps[t / LANES];
            thread.lane = static_cast<int>(t % LANES);
            ++thread.warp->lanes;
        }
    }
}

void take_down(Block& own) {
    std::free(own.dynamic_memory);
#ifdef EMULATOR_TSAN
    std::free(own.arena);
#else
    for (void* memory : own.static_memory) std::free(memory);
#endif
    for (Thread& thread : own.threads) abandon(thread);
}
}  // namespace

namespace emulator {
extern "C" {
Place* emulator_place;

int emulator_lane() { return running->lane; }

void emulator_barrier(int id, int threads) {
    Block& block = *running->block;
    const int all = static_cast<int>(block.threads.size());
    if (id < 0 || id > 15 || (id > 0 && (threads < LANES || threads % LANES || threads > all)))
        fail("barrier %d of %d threads in a block of %d", id, threads, all);
    Barrier& barrier = block.barriers[id];
    const int expected = id ? threads : all;
    if (barrier.arrived && barrier.threads != expected)
        fail("barrier %d is of %d threads for some and of %d for others", id, barrier.threads, expected);
    barrier.threads = expected;
    char* const token = &barrier.token[barrier.turn & 1];  // this turn's own: to come to the next shows no order here
    RELEASE(token);
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        ++barrier.turn;
        for (Thread& other : block.threads)
            if (other.state == State::barrier && other.barrier == id) wake(other);
    } else {
        running->state = State::barrier;
        running->barrier = id;
        to_scheduler();
    }
    ACQUIRE(token);
}

void emulator_warp_barrier() {
    char* const token = &running->warp->token[running->warp->turn & 1];
    RELEASE(token);
    warp_operation(Operation::barrier, 0, nothing);
    ACQUIRE(token);
}

void emulator_exchange(const void* mine, void* theirs, int bytes, int lane) {
    Warp& warp = *running->warp;
    copy_bytes(warp.given[warp.turn & 1][running->lane], mine, bytes);
    const unsigned half = warp_operation(Operation::exchange, bytes, nothing);
    copy_bytes(theirs, warp.given[half][lane], bytes);
}

void emulator_mma(const unsigned* a, const unsigned* b, float* d, Numbers numbers) {
    Warp& warp = *running->warp;
    unsigned char* const given = warp.given[warp.turn & 1][running->lane];
    copy_bytes(given, a, 16);
    copy_bytes(given + 16, b, 8);
    const unsigned half = warp_operation(Operation::mma, static_cast<int>(numbers),
                               [numbers](Warp& all, unsigned side) { multiply(all, side, numbers); });
    for (int i = 0; i < 4; ++i) d[i] += warp.sums[half][running->lane][i];
}

void* emulator_shared_dynamic() { return running->block->dynamic_memory; }

void* emulator_shared_static(const void* key, std::size_t bytes) {
    std::size_t index = 0;
    while (index < shared_arrays.size() && shared_arrays[index].key != key) ++index;
    if (index == SHARED_ARRAYS) fail("more than %zu static shared arrays", SHARED_ARRAYS);
    if (index == shared_arrays.size()) shared_arrays.push_back({key, bytes});
    return static_shared(*running->block, index);
}

unsigned emulator_load_acquire(const unsigned* word) {
    const unsigned value = __atomic_load_n(word, __ATOMIC_RELAXED);
    ACQUIRE(const_cast<unsigned*>(word));
    return value;
}

void emulator_add_release(unsigned* word, unsigned value) {
    RELEASE(word);
    __atomic_fetch_add(word, value, __ATOMIC_RELAXED);
    ++progress;
}

void emulator_pause() {
    running->paused = true;
    ready.push_back(running);
    to_scheduler();
}

void emulator_copy_issue(void* to, const void* from, int bytes) {
    if (reinterpret_cast<std::uintptr_t>(to) % bytes || reinterpret_cast<std::uintptr_t>(from) % bytes)
        fail("copy_async of %d bytes between addresses that are no multiples of that", bytes);
    poison(to, bytes);
    running->copies.push_back({static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes});
    ++running->open;
}

void emulator_copy_commit() {
    running->groups.push_back(running->open);
    running->open = 0;
}

const Copy* emulator_copy_landed(int groups, int* count) {
    std::size_t landed = 0;
    while (static_cast<int>(running->groups.size()) > groups) {
        landed += running->groups.front();
        running->groups.erase(running->groups.begin());
    }
    std::vector<Copy>& copies = running->copies;
    running->landed.assign(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(landed));
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(landed));
    *count = static_cast<int>(landed);
    return running->landed.data();
}

unsigned emulator_cluster_rank() { return running->block->rank; }
unsigned emulator_cluster_size() { return static_cast<unsigned>(running->block->cluster->blocks.size()); }

void emulator_cluster_arrive() {
    Cluster& cluster = *running->block->cluster;
    RELEASE(&cluster.token[cluster.turn & 1]);
    ++cluster.arrived;
}

void emulator_cluster_wait() {
    Cluster& cluster = *running->block->cluster;
    char* const token = &cluster.token[cluster.turn & 1];
    // the last thread that waits wakes the others: a thread between arrive and wait keeps the turn from ending early
    std::size_t waiting = 0;
    for (Block* block : cluster.blocks)
        for (Thread& other : block->threads) waiting += other.state == State::cluster;
    if (waiting + 1 == cluster.threads) {
        if (cluster.arrived != cluster.threads)
            fail("cluster barrier: %u arrivals of %zu threads", cluster.arrived, cluster.threads);
        cluster.arrived = 0;
        ++cluster.turn;
        for (Block* block : cluster.blocks)
            for (Thread& other : block->threads)
                if (other.state == State::cluster) wake(other);
    } else {
        running->state = State::cluster;
        to_scheduler();
    }
    ACQUIRE(token);
}

// rank in bits 28-31, the shared array in 24-27 (15: dynamic memory), the byte in it below
unsigned emulator_map_shared(const void* shared, unsigned rank) {
    const Block& block = *running->block;
    if (rank >= block.cluster->blocks.size()) fail("rank %u in a cluster of %zu", rank, block.cluster->blocks.size());
    const auto within = [shared](const void* start, std::size_t bytes) {
        const char* const from = static_cast<const char*>(start);
        return start && shared >= from && shared < from + bytes;
    };
    const auto distance = [shared](const void* start) {
        return static_cast<unsigned>(static_cast<const char*>(shared) - static_cast<const char*>(start));
    };
    if (within(block.dynamic_memory, dynamic_bytes))
        return rank << 28 | 15u << 24 | distance(block.dynamic_memory);
    for (std::size_t i = 0; i < shared_arrays.size(); ++i)
        if (within(block.static_memory[i], shared_arrays[i].bytes))
            return rank << 28 | static_cast<unsigned>(i) << 24 | distance(block.static_memory[i]);
    fail("map_shared of an address that is not in shared memory");
}

void* emulator_shared_of(unsigned address) {
    Block& block = *running->block->cluster->blocks[address >> 28];
    const unsigned index = address >> 24 & 15, byte = address & 0xffffff;
    if (index == 15) return static_cast<char*>(block.dynamic_memory) + byte;
    return static_cast<char*>(static_shared(block, index)) + byte;
}

// arrivals awaited in bits 0-19, still missing in 20-39, phases ended from 40 on
void emulator_mbarrier_init(unsigned long long* barrier, unsigned count) {
    *barrier = count | static_cast<unsigned long long>(count) << 20;
}

void emulator_mbarrier_arrive(unsigned long long* barrier) {
    RELEASE(barrier);
    const unsigned long long count = *barrier & 0xfffff, missing = *barrier >> 20 & 0xfffff, phase = *barrier >> 40;
    *barrier = missing > 1 ? count | (missing - 1) << 20 | phase << 40 : count | count << 20 | (phase + 1) << 40;
    ++progress;
}

bool emulator_mbarrier_ended(unsigned long long* barrier, unsigned parity) {
    if ((*barrier >> 40 & 1) == parity) {
        emulator_pause();
        if ((*barrier >> 40 & 1) == parity) return false;
    }
    ACQUIRE(barrier);
    return true;
}

// Runs a launch to its end; gives an empty string, or what went wrong.
const char* emulator_launch(void (*function)(void**), void** values, const unsigned* grid, const unsigned* block,
                            std::size_t shared, int cooperative, unsigned cluster, unsigned seed) {
    entry = function;
    arguments = values;
    message.clear();
    message.reserve(MESSAGE);
    shared_arrays.clear();
    shared_arrays.reserve(SHARED_ARRAYS);
    dynamic_bytes = shared;
    const dim3 grid_size(grid[0], grid[1], grid[2]), block_size(block[0], block[1], block[2]);
    const unsigned blocks = grid[0] * grid[1] * grid[2], threads = block[0] * block[1] * block[2];
    if (threads == 0 || threads > 1024 || blocks == 0) return "a launch of no threads, or of over 1024 a block";
    if (cluster == 0 || grid[0] % cluster) return "grid.x is no multiple of the cluster";
    const unsigned together = cooperative ? blocks : cluster;
    std::mt19937 random(seed);
    std::vector<unsigned> first(blocks / together);
    for (std::size_t i = 0; i < first.size(); ++i) first[i] = static_cast<unsigned>(i) * together;
    if (seed) std::shuffle(first.begin(), first.end(), random);
#ifdef EMULATOR_TSAN
    scheduler_fiber = __tsan_get_current_fiber();
    ++launch;
    const std::size_t laid_out = first.size();  // to free one and make the next would put them in order
#else
    const std::size_t laid_out = 1;
#endif
    for (std::size_t next = 0; next < first.size() && message.empty(); next += laid_out) {
        std::vector<Wave> waves(laid_out);
        for (std::size_t i = 0; i < laid_out; ++i)
            lay_out(waves[i], first[next + i], together, cluster, grid_size, block_size);
        RELEASE(&begin_token);
        for (std::size_t i = 0; i < laid_out && message.empty(); ++i) run(waves[i].blocks, random, seed != 0);
        ACQUIRE(&end_token);
        for (Wave& wave : waves)
            for (Block& own : wave.blocks) take_down(own);
    }
    return message.c_str();
}
}
}  // namespace emulator
