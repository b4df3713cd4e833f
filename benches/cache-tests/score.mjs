// Counts the results as the suite's own pages do, and says what traffic_server doesn't pass.
//
//   node score.mjs SUITE RESULTS NAME...
import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const [suite, dir, ...names] = process.argv.slice(2)
const load = file => import(pathToFileURL(path.join(suite, file)))
const tests = (await load('tests/index.mjs')).default
const { determineTestResult, resultTypes } = await load('test-engine/lib/results.mjs')
const kinds = ['required', 'optimal', 'check']
const word = type => Object.keys(resultTypes).find(k => resultTypes[k] === type)

const rows = []
for (const name of names) {
  const file = path.join(dir, `${name}.json`)
  if (!fs.existsSync(file)) continue
  const results = JSON.parse(fs.readFileSync(file))
  const row = { name, total: 0 }
  const missed = []
  for (const group of tests) {
    for (const test of group.tests) {
      if (test.browser_only) continue
      const kind = test.kind ?? 'required'
      const result = word(determineTestResult(tests, test.id, results))
      const passed = result === 'pass' || result === 'yes'
      row[kind] = row[kind] ?? { passed: 0, of: 0 }
      row[kind].of++
      if (passed) {
        row[kind].passed++
        row.total++
      } else {
        missed.push(`  ${kind.padEnd(8)} ${result.padEnd(15)} ${test.id}: ${test.name}: ${results[test.id]?.[1] ?? ''}`)
      }
    }
  }
  rows.push(row)
  fs.writeFileSync(path.join(dir, `${name}.missed`), missed.join('\n') + '\n')
  if (name === 'traffic') console.log(`not passed by traffic_server:\n${missed.join('\n')}\n`)
}
console.log('| cache | ' + kinds.join(' | ') + ' | all |')
console.log('|---|' + kinds.map(() => '---|').join('') + '---|')
for (const row of rows) {
  const cells = kinds.map(k => `${row[k].passed} of ${row[k].of}`)
  console.log(`| ${row.name} | ${cells.join(' | ')} | ${row.total} |`)
}
