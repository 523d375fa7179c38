// What ComfyUI's editor exports: node exports.mjs URL CHROMIUM FOLDER_OF_EDITOR [object_info.json] < lines > lines
// URL is a running ComfyUI, FOLDER_OF_EDITOR the "static" folder of an unpacked comfyui-frontend-package wheel of any
// version (it is served instead of ComfyUI's own). Each line of input is an editor's file, each of output its export.
// Needs playwright-core (npm); nothing but URL is reached.
import fs from 'fs'
import path from 'path'
import readline from 'readline'
import { chromium } from 'playwright-core'

const [url, executablePath, editor, registry] = process.argv.slice(2)
const types = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.html': 'text/html', '.svg': 'image/svg+xml' }
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] })
const page = await browser.newPage()
await page.route('**/*', route => {
  const asked = new URL(route.request().url())
  if (asked.protocol === 'blob:' || asked.protocol === 'data:') return route.continue()
  if (asked.origin !== new URL(url).origin) return route.abort()
  if (registry && asked.pathname.endsWith('/object_info')) return route.fulfill({ contentType: 'application/json', body: fs.readFileSync(registry) })
  const file = path.join(editor, asked.pathname === '/' ? 'index.html' : decodeURIComponent(asked.pathname))
  if (!fs.existsSync(file) || !fs.statSync(file).isFile()) return route.continue()
  return route.fulfill({ contentType: types[path.extname(file)] || 'application/octet-stream', body: fs.readFileSync(file) })
})
page.on('dialog', dialog => dialog.dismiss())
await page.goto(url)
await page.waitForFunction(() => window.app?.extensionManager && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 300, null, { timeout: 120000 })
await page.waitForTimeout(5000) // the editor loads its own last workflow once more
for await (const line of readline.createInterface({ input: process.stdin })) {
  const answer = await page.evaluate(async file => {
    try {
      await window.app.loadGraphData(file, true, false)
      return (await window.app.graphToPrompt()).output
    } catch (error) {
      return { error: String(error) }
    }
  }, JSON.parse(line))
  console.log(JSON.stringify(answer))
}
await browser.close()
