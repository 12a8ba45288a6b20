/* libnvidia-ml.so.1 for machines without a GPU: plays the machine of a script (script.h) through NVML's own interface.
 *
 * Structures and signatures follow nvml.h of CUDA 12. A handle is the interned uuid of its device, so one that
 * outlives its device gets the answer a driver gives: GPU_IS_LOST, or NOT_FOUND for a slice.
 */
#include <stdio.h>
#include <string.h>

#include "device.h"

typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;
typedef struct {
    unsigned int sms, copy, dec, enc, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} attributes_t;
typedef struct { device_t device; unsigned int id, profile, start, size; } instance_info_t;

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    script_lock();
    const line_t *system = script_find("system", NULL, NULL, 0);
    int error = system == NULL ? DRIVER_NOT_LOADED : number_of(system, "init", OK);
    if (error == OK) epoch = number_of(system, "epoch", 0);
    script_unlock();
    return error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    int error = epoch < 0 ? UNINITIALIZED : OK;
    epoch = -1;
    return error;
}

const char *nvmlErrorString(int error) {
    switch (error) {
        case OK: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NO_PERMISSION: return "Insufficient Permissions";
        case NOT_FOUND: return "Not Found";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case TIMEOUT: return "Timeout";
        case GPU_IS_LOST: return "GPU is lost";
        default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *buffer, unsigned int size) {
    script_lock();
    int error = state();
    const char *text = error == OK ? line_text(script_find("system", NULL, NULL, 0), "driver", &error) : NULL;
    if (error == OK) snprintf(buffer, size, "%s", text);
    script_unlock();
    return error;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    script_lock();
    int error = state();
    *count = 0;
    while (error == OK && script_find("gpu", NULL, NULL, (int)*count) != NULL) (*count)++;
    script_unlock();
    return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *device) {
    script_lock();
    int error = state();
    const line_t *line = error == OK ? script_find("gpu", NULL, NULL, (int)index) : NULL;
    if (error == OK) error = line == NULL ? INVALID_ARGUMENT : number_of(line, "error", OK);
    if (error == OK) *device = interned(line_text(line, "uuid", &error));
    script_unlock();
    return error;
}

int nvmlDeviceGetUUID(device_t device, char *buffer, unsigned int size) {
    return get_text(device, "uuid", buffer, size);
}

int nvmlDeviceGetName(device_t device, char *buffer, unsigned int size) {
    return get_text(device, "name", buffer, size);
}

int nvmlDeviceGetPciInfo_v3(device_t device, pci_t *pci) {
    memset(pci, 0, sizeof *pci);
    return get_text(device, "pci", pci->bus_id, sizeof pci->bus_id);
}

int nvmlDeviceGetArchitecture(device_t device, unsigned int *value) { return get_uint(device, "architecture", value); }
int nvmlDeviceGetNumGpuCores(device_t device, unsigned int *value) { return get_uint(device, "cores", value); }
int nvmlDeviceGetGpuInstanceId(device_t device, unsigned int *value) { return get_uint(device, "gi", value); }
int nvmlDeviceGetComputeInstanceId(device_t device, unsigned int *value) { return get_uint(device, "ci", value); }
int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned int *value) { return get_uint(device, "slots", value); }

int nvmlDeviceGetMigMode(device_t device, unsigned int *current, unsigned int *pending) {
    int error = get_uint(device, "mig_mode", current);
    *pending = *current;
    return error;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned int slot, device_t *slice) {
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    for (int n = 0; error == OK; n++) {
        line = script_find("mig", "gpu", device, n);
        if (line == NULL) error = NOT_FOUND;
        else if (number_of(line, "slot", -1) == (int)slot) {
            *slice = interned(line_text(line, "uuid", &error));
            break;
        }
    }
    script_unlock();
    return error;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t slice, device_t *device) {
    char uuid[96];
    int error = get_text(slice, "gpu", uuid, sizeof uuid);
    script_lock();
    if (error == OK) *device = interned(uuid);
    script_unlock();
    return error;
}

int nvmlDeviceGetAttributes_v2(device_t device, attributes_t *attributes) {
    memset(attributes, 0, sizeof *attributes);
    double memory = 0;
    int error = get_uint(device, "sms", &attributes->sms);
    if (error == OK) error = get_number(device, "memory_total", &memory);
    attributes->memory_mib = (unsigned long long)(memory / 1048576);
    return error;
}

/* The handle of a GPU instance is the interned uuid of a slice in it. */
int nvmlDeviceGetGpuInstanceById(device_t device, unsigned int gi, device_t *instance) {
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    for (int n = 0; error == OK; n++) {
        line = script_find("mig", "gpu", device, n);
        if (line == NULL) error = NOT_FOUND;
        else if (number_of(line, "gi", -1) == (int)gi) break;
    }
    if (error == OK) error = number_of(line, "info_error", OK);
    if (error == OK) *instance = interned(line_text(line, "uuid", &error));
    script_unlock();
    return error;
}

int nvmlGpuInstanceGetInfo(device_t instance, instance_info_t *info) {
    memset(info, 0, sizeof *info);
    int error = get_uint(instance, "gi", &info->id);
    if (error == OK) error = get_uint(instance, "start", &info->start);
    if (error == OK) error = get_uint(instance, "size", &info->size);
    return error;
}
