/* NVML's readings of a device: memory, power, energy, counters, processes, events and GPM. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long memory; unsigned int gi, ci; } process_t;
typedef struct { unsigned int pid; unsigned long long time_us; unsigned int sm, memory, enc, dec; } process_use_t;
typedef struct { device_t device; unsigned long long type, data; unsigned int gi, ci; } event_t;
typedef struct {
    uint32_t field, scope;
    int64_t time_us, latency_us;
    unsigned int type, result;
    union { double d; unsigned int ui; unsigned long long ull; } value;
} field_t;
typedef struct { device_t device; unsigned int gi; } gpm_sample_t;
typedef struct { unsigned int id, result; double value; const char *names[3]; } gpm_metric_t;
typedef struct { unsigned int version, count; gpm_sample_t *first, *second; gpm_metric_t metrics[]; } gpm_get_t;

int nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory) {
    double total = 0, used = 0;
    int error = get_number(device, "memory_total", &total);
    if (error == OK) error = get_number(device, "memory_used", &used);
    memory->total = (unsigned long long)total;
    memory->used = (unsigned long long)used;
    memory->free = memory->total - memory->used;
    return error;
}

int nvmlDeviceGetUtilizationRates(device_t device, utilization_t *utilization) {
    int error = get_uint(device, "utilization", &utilization->gpu);
    return error == OK ? get_uint(device, "memory_utilization", &utilization->memory) : error;
}

/* power=<low mW>:<high mW>:<half period ms>: a square wave that starts low at the epoch. */
static int wave(const line_t *line, double *low, double *high, double *half_ns) {
    int error;
    const char *text = line_text(line, "power", &error);
    if (error != OK) return error;
    double half_ms = 1e12;
    int found = sscanf(text, "%lf:%lf:%lf", low, high, &half_ms);
    if (found == 1) *high = *low;
    *half_ns = half_ms * 1e6;
    return OK;
}

static double wave_power_mw(double low, double high, double half_ns, double at_ns) {
    return fmod(at_ns, 2 * half_ns) < half_ns ? low : high;
}

/* The integral of the wave since the epoch, in mJ: mW * ns / 1e9. */
static double wave_energy_mj(double low, double high, double half_ns, double at_ns) {
    double periods = floor(at_ns / (2 * half_ns)), rest = at_ns - periods * 2 * half_ns;
    double lows = periods * half_ns + fmin(rest, half_ns), highs = periods * half_ns + fmax(0, rest - half_ns);
    return (lows * low + highs * high) / 1e9;
}

/* The average of the last second, as drivers report it from Ampere on; before it the value of the moment. */
static int power_mw(device_t device, int average, double *value) {
    const line_t *line;
    double low, high, half_ns;
    script_lock();
    int error = device_line(device, &line);
    if (error == OK) error = wave(line, &low, &high, &half_ns);
    if (error == OK) {
        double now = now_ns();
        *value = average ? wave_energy_mj(low, high, half_ns, now) - wave_energy_mj(low, high, half_ns, now - 1e9)
                         : wave_power_mw(low, high, half_ns, now);
    }
    script_unlock();
    return error;
}

int nvmlDeviceGetPowerUsage(device_t device, unsigned int *value) {
    double found = 0;
    int error = power_mw(device, 1, &found);
    *value = (unsigned int)lround(found);
    return error;
}

/* energy=<mJ at energy_from_ns>, the wave's integral on top; refresh_ms behind; 2^wrap_bits and it begins again. */
int nvmlDeviceGetTotalEnergyConsumption(device_t device, unsigned long long *value) {
    const line_t *line;
    double low, high, half_ns;
    script_lock();
    int error = device_line(device, &line);
    double base = error == OK ? line_number(line, "energy", &error) : 0;
    if (error == OK) error = wave(line, &low, &high, &half_ns);
    if (error == OK) {
        double refresh = value_or(line, "refresh_ms", 0) * 1e6, from = value_or(line, "energy_from_ns", 0);
        double now = now_ns(), at = refresh > 0 ? floor(now / refresh) * refresh : now;
        double total = base;
        if (at > from) total += wave_energy_mj(low, high, half_ns, at) - wave_energy_mj(low, high, half_ns, from);
        double bits = value_or(line, "wrap_bits", 0);
        *value = (unsigned long long)(bits > 0 ? fmod(total, exp2(bits)) : total);
    }
    script_unlock();
    return error;
}

int nvmlDeviceGetTemperature(device_t device, unsigned int sensor, unsigned int *value) {
    (void)sensor;
    return get_uint(device, "temperature", value);
}

int nvmlDeviceGetClockInfo(device_t device, unsigned int clock, unsigned int *mhz) {
    return get_uint(device, clock == 2 ? "memory_clock" : "sm_clock", mhz);
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t device, unsigned long long *reasons) {
    double found = 0;
    int error = get_number(device, "reasons", &found);
    *reasons = (unsigned long long)found;
    return error;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t device, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

int nvmlDeviceGetPcieThroughput(device_t device, unsigned int counter, unsigned int *kib_per_s) {
    return get_uint(device, counter == 0 ? "pcie_tx" : "pcie_rx", kib_per_s);
}

int nvmlDeviceGetTotalEccErrors(device_t device, unsigned int kind, unsigned int counter, unsigned long long *count) {
    (void)counter;
    double found = 0;
    int error = get_number(device, kind == 0 ? "ecc_corrected" : "ecc_uncorrected", &found);
    *count = (unsigned long long)found;
    return error;
}

int nvmlDeviceGetFieldValues(device_t device, int count, field_t *fields) {
    for (int i = 0; i < count; i++) {
        double found = 0;
        switch (fields[i].field) {
            case 186: fields[i].result = (unsigned int)power_mw(device, 0, &found); break;
            case 138: fields[i].result = (unsigned int)get_number(device, "nvlink_tx", &found); break;
            case 139: fields[i].result = (unsigned int)get_number(device, "nvlink_rx", &found); break;
            default: fields[i].result = NOT_SUPPORTED;
        }
        /* The script says what all links carry; any scope but "all" is one link. */
        if (fields[i].field != 186 && fields[i].scope != 0xFFFFFFFFu) found /= 18;
        fields[i].type = fields[i].field == 186 ? 1 : 3;
        if (fields[i].type == 1) fields[i].value.ui = (unsigned int)found;
        else fields[i].value.ull = (unsigned long long)found;
    }
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    script_unlock();
    return error;
}

static int processes(device_t device, int mps, unsigned int *count, process_t *found) {
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    if (error == OK) error = number_of(line, "processes_error", OK);
    unsigned int room = *count, n = 0;
    int slice = error == OK && strcmp(line->kind, "mig") == 0, ignored = OK;
    int gi = slice ? number_of(line, "gi", -1) : -1, ci = slice ? number_of(line, "ci", -1) : -1;
    const char *gpu = slice ? interned(line_text(line, "gpu", &ignored)) : device;
    for (int i = 0; error == OK && (line = script_find("process", "gpu", gpu, i)) != NULL; i++) {
        if (number_of(line, "mps", 0) != mps) continue;
        if (slice && (number_of(line, "gi", -1) != gi || number_of(line, "ci", -1) != ci)) continue;
        if (n < room && found != NULL) {
            found[n].pid = (unsigned int)number_of(line, "pid", 0);
            found[n].memory = (unsigned long long)value_or(line, "memory", 18446744073709551615.0);
            found[n].gi = (unsigned int)number_of(line, "gi", -1);
            found[n].ci = (unsigned int)number_of(line, "ci", -1);
        }
        n++;
    }
    *count = n;
    script_unlock();
    return error != OK ? error : n > room ? INSUFFICIENT_SIZE : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned int *count, process_t *found) {
    return processes(device, 0, count, found);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t device, unsigned int *count, process_t *found) {
    return processes(device, 1, count, found);
}

int nvmlDeviceGetProcessUtilization(device_t device, process_use_t *found, unsigned int *count,
                                    unsigned long long since_us) {
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    if (error == OK && number_of(line, "mig_mode", 0) == 1) error = NOT_SUPPORTED;
    unsigned int room = *count, n = 0;
    unsigned long long now_us = (unsigned long long)(now_ns() / 1000);
    for (int i = 0; error == OK && (line = script_find("process", "gpu", device, i)) != NULL; i++) {
        int sm = number_of(line, "sm", -1);
        if (sm < 0 || now_us <= since_us) continue;
        if (n < room && found != NULL)
            found[n] = (process_use_t){(unsigned int)number_of(line, "pid", 0), now_us, (unsigned int)sm, 0, 0, 0};
        n++;
    }
    *count = n;
    script_unlock();
    return error != OK ? error : n > room ? INSUFFICIENT_SIZE : n == 0 ? NOT_FOUND : OK;
}

/* Events: xid=<number> on a gpu line is reported once each time the script gives it another xid_seq. */
typedef struct { int count; device_t devices[64]; int seen[64]; } event_set_t;

int nvmlEventSetCreate(event_set_t **set) {
    *set = calloc(1, sizeof **set);
    return OK;
}

int nvmlEventSetFree(event_set_t *set) {
    free(set);
    return OK;
}

int nvmlDeviceRegisterEvents(device_t device, unsigned long long types, event_set_t *set) {
    (void)types;
    double supported;
    int error = get_number(device, "xid_seq", &supported);
    if (error == OK && set->count < 64) set->devices[set->count++] = device;
    return error;
}

int nvmlEventSetWait_v2(event_set_t *set, event_t *event, unsigned int timeout_ms) {
    (void)timeout_ms;
    for (int i = 0; i < set->count; i++) {
        double sequence = 0, xid = 0;
        if (get_number(set->devices[i], "xid_seq", &sequence) != OK || (int)sequence == set->seen[i]) continue;
        get_number(set->devices[i], "xid", &xid);
        set->seen[i] = (int)sequence;
        *event = (event_t){set->devices[i], 8, (unsigned long long)xid, 0xffffffff, 0xffffffff};
        return OK;
    }
    return TIMEOUT;
}

int nvmlGpmQueryDeviceSupport(device_t device, unsigned int support[2]) {
    unsigned int value = 0;
    int error = get_uint(device, "gpm", &value);
    support[1] = error == OK ? value : 0;
    return error == NOT_SUPPORTED ? OK : error;
}

int nvmlGpmSampleAlloc(gpm_sample_t **sample) {
    *sample = calloc(1, sizeof **sample);
    return OK;
}

int nvmlGpmSampleFree(gpm_sample_t *sample) {
    free(sample);
    return OK;
}

int nvmlGpmSampleGet(device_t device, gpm_sample_t *sample) {
    *sample = (gpm_sample_t){device, 0xffffffff};
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    script_unlock();
    return error;
}

int nvmlGpmMigSampleGet(device_t device, unsigned int gi, gpm_sample_t *sample) {
    device_t instance;
    *sample = (gpm_sample_t){device, gi};
    return nvmlDeviceGetGpuInstanceById(device, gi, &instance);
}

/* gpm=<percent busy> on the mig line, or on the gpu line as gpm_busy. */
int nvmlGpmMetricsGet(gpm_get_t *get) {
    for (unsigned int i = 0; i < get->count; i++) {
        const line_t *line = NULL;
        int error = OK;
        script_lock();
        if (get->second->gi == 0xffffffff) line = script_find("gpu", "uuid", get->second->device, 0);
        for (int n = 0; get->second->gi != 0xffffffff; n++) {
            line = script_find("mig", "gpu", get->second->device, n);
            if (line == NULL || number_of(line, "gi", -1) == (int)get->second->gi) break;
        }
        get->metrics[i].value = line_number(line, "gpm_busy", &error);
        get->metrics[i].result = (unsigned int)error;
        script_unlock();
    }
    return OK;
}
