-- Appends the entries of one update to their rows and advances the applied offsets, in one atomic step.
--
-- KEYS: epoch pointer | applied offsets of n partitions | r rows | w witness sets | c rows to compact | expired rows
-- ARGV: epoch | n, then (start, stop, watermark) per partition | r | w | event time before which entries are trimmed |
--       a payload per row | (hash of the row key, number of the row, negative if the entry begins the row) per witness |
--       (first entry, length in bytes, replacement) per row to compact
--
-- Returns one of:
--   'OK'     the update is applied
--   'EPOCH'  another epoch is current; nothing has changed
--   'GAP'    an applied offset is missing or below the start of the update; nothing has changed
--   'LOST'   a row that existed when the batch was read is missing; the epoch is given up
--   a list   applied offsets, one per partition, if any is above the start of the update; nothing has changed
local KEYS, ARGV, call, unpack = KEYS, ARGV, redis.call, struct.unpack -- Lua reads a local variable faster.
if call('GET', KEYS[1]) ~= ARGV[1] then return 'EPOCH' end

local n = tonumber(ARGV[2])
local applied, watermarks, targets, ahead = {}, {}, {}, false
for i = 1, n do
  local packed = call('GET', KEYS[1 + i])
  if not packed then return 'GAP' end
  local offset, watermark, target = unpack(APPLIED_PATTERN, packed)
  local start = tonumber(ARGV[3 * i])
  if offset < start then return 'GAP' end
  if offset > start then ahead = true end
  applied[i], watermarks[i], targets[i] = offset, watermark, target
end
if ahead then return applied end

local a = 3 * n + 3
local r, w, trim_before = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
local expired = KEYS[#KEYS]

-- Compaction replaces the beginning of a row, unless the row has changed there since it was read. Entries that were
-- appended since then stay behind the replacement.
for k = n + 2 + r + w, #KEYS - 1 do
  local j = a + 3 + r + 2 * w + 3 * (k - n - 2 - r - w)
  local length = tonumber(ARGV[j + 1])
  if call('STRLEN', KEYS[k]) >= length and call('GETRANGE', KEYS[k], 0, ENTRY_BYTES - 1) == ARGV[j] then
    call('SET', KEYS[k], ARGV[j + 2] .. call('GETRANGE', KEYS[k], length, -1))
  end
end

local function give_up_epoch()
  call('DEL', KEYS[1])
  return 'LOST'
end

-- Rows, by number, that this update begins.
local begins = {}
for j = a + 4 + r, a + 2 + r + 2 * w, 2 do
  local row = tonumber(ARGV[j])
  if row < 0 then begins[-row] = true end
end

local step, head = 16 * ENTRY_BYTES, 8 * ENTRY_BYTES
local first_time, last_time = TIME_START + 1, head - ENTRY_BYTES + TIME_START + 1
-- Text, because Redis converts a number with printf.
local head_end = tostring(head - 1)
for k = n + 2, n + 1 + r do
  local key, payload = KEYS[k], ARGV[a + 1 + k - n]
  local size, added = call('APPEND', key, payload), #payload
  if size == added then
    -- The row was missing. That is correct for a new row, and for a row that expired after the batch was read.
    if not begins[k - n - 1] and call('SISMEMBER', expired, key) == 0 then return give_up_epoch() end
  else
    begins[k - n - 1] = nil
  end
  -- Trim old entries, but only when the row crosses a multiple of 16 entries and its first 8 are old, because trimming
  -- copies the row, which costs as much as two appends. A compacted row begins with a header that is never old. The last
  -- entry always stays, because a row without entries would look like a lost row.
  if size >= step and size % step < added then
    local head = call('GETRANGE', key, '0', head_end)
    if unpack(FIELD_PATTERN, head, first_time) < trim_before and unpack(FIELD_PATTERN, head, last_time) < trim_before then
      local row, at = call('GET', key), 1
      while at < size - ENTRY_BYTES + 1 and unpack(FIELD_PATTERN, row, at + TIME_START) < trim_before do
        at = at + ENTRY_BYTES
      end
      call('SET', key, string.sub(row, at))
    end
  end
end

for k = 0, w - 1 do
  local j = a + 3 + r + 2 * k
  local row = math.abs(tonumber(ARGV[j + 1]))
  -- Two batches that both read the row as missing may both begin it; the second one finds the row in place. A witness
  -- without its row means that the row was lost.
  if call('SADD', KEYS[n + 2 + r + k], ARGV[j]) == 0 and begins[row]
    and call('SISMEMBER', expired, KEYS[n + 1 + row]) == 0 then return give_up_epoch() end
  begins[row] = nil
end

for i = 1, n do
  local stop, watermark = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  call('SET', KEYS[1 + i], struct.pack(APPLIED_PATTERN, stop, math.max(watermark, watermarks[i]), targets[i]))
end
return 'OK'
