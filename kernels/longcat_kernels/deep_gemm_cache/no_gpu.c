/* CUDA without a GPU, for a process that compiles DeepGEMM's kernels and launches none.
 *
 * Preloaded (LD_PRELOAD), it stands in for what torch and DeepGEMM ask of CUDA between a GEMM call
 * and its launch. One Hopper GPU answers, with SMS multiprocessors: DeepGEMM reads the architecture
 * and that number only. Memory is reserved address space; modules load and kernels launch by doing
 * nothing. A CUDA call that is not here fails as it does on a machine without a driver.
 *
 *     nvcc -shared -cudart none -DSMS=132 -Xcompiler -fPIC -Xlinker -soname=libcuda.so.1 no_gpu.c
 *
 * With that soname, dlopen("libcuda.so.1") returns this library, also where a driver is installed.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>
#include <sys/mman.h>

static int loads;

/* How many modules the process has loaded: DeepGEMM loads each kernel once. */
int no_gpu_loads(void) { return loads; }

/* The runtime, which torch calls. */

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDA_VERSION; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "no GPU");
    properties->major = 9;
    properties->multiProcessorCount = SMS;
    properties->warpSize = 32;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    return *memory == MAP_FAILED ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void *memory) { return cudaSuccess; } /* the process is about to end */

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    return cudaSuccess;
}

/* The driver, which DeepGEMM opens by name. */

CUresult cuGetErrorName(CUresult error, const char **text) { *text = "no GPU"; return 0; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "no GPU"; return 0; }

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0, *active = 0;
    return CUDA_SUCCESS;
}

CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *file, CUjit_option *options,
                               void **values, unsigned count, CUlibraryOption *library_options,
                               void **library_values, unsigned library_count) {
    loads++;
    *library = (CUlibrary)1;
    return CUDA_SUCCESS;
}

CUresult cuLibraryUnload(CUlibrary library) { return CUDA_SUCCESS; }

CUresult cuLibraryGetKernelCount(unsigned *count, CUlibrary library) {
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned count, CUlibrary library) {
    kernels[0] = (CUkernel)1;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    *function = (CUfunction)1;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *sizes, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    memset(map, 0, sizeof *map);
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments,
                          void **extra) {
    return CUDA_SUCCESS;
}

/* cuBLASLt: DeepGEMM makes a handle with its other state, and uses it for other GEMMs only. */

int cublasLtCreate(void **handle) { *handle = (void *)1; return 0; }
int cublasLtDestroy(void *handle) { return 0; }
